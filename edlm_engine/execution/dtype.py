"""Which dtype a device is fast in."""

from __future__ import annotations

import logging

import torch

_log = logging.getLogger(__name__)


def as_dtype(dtype: torch.dtype | str | None) -> torch.dtype | None:
    """A floating dtype, also by its name; None stays None."""
    if dtype is None:
        return None
    made = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if not isinstance(made, torch.dtype) or not made.is_floating_point:
        raise TypeError(
            f"dtype must be None, a floating-point torch.dtype or its name, got {dtype!r}"
        )
    return made


def fast_dtype(device: torch.device | str) -> torch.dtype:
    """bfloat16 where the device multiplies such matrices in hardware, else float32, logged."""
    if torch.device(device).type == "cuda":
        fast, missing = torch.cuda.is_bf16_supported(including_emulation=False), "bfloat16"
    else:
        fast = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
        missing = "AVX-512 BF16 or AMX"
    if not fast:
        _log.info("float32 blocks: %s has no %s", device, missing)
    return torch.bfloat16 if fast else torch.float32
