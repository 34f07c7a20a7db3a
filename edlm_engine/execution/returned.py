"""What others' code gives back, checked before it is used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def check_returned(what: str, value: Any, shape: Sequence[int], device: torch.device) -> None:
    """What a model returned must be a tensor of this shape on this kind of device."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{what} must be a tensor, got {type(value).__name__}")
    if value.is_complex() or value.dtype == torch.bool:
        raise ValueError(f"{what} must hold real numbers, got {value.dtype}")
    if value.shape != shape:
        raise ValueError(f"{what} must have shape {list(shape)}, got {list(value.shape)}")
    if value.device.type != device.type:
        raise ValueError(f"{what} must be on {device}, got {value.device}")
