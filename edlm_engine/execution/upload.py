"""From the host to a device without waiting for it."""

from __future__ import annotations

import torch
from torch import Tensor


def upload(device: torch.device, *tensors: Tensor) -> tuple[Tensor, ...]:
    """Host tensors [n] of 8 bytes an element on a device, in one copy that does not wait for it.

    Only a copy from pinned memory does not wait. On the CPU the tensors themselves.
    """
    if device.type == "cpu":
        return tensors
    packed = torch.cat([tensor.view(torch.int64) for tensor in tensors]).pin_memory()
    parts = packed.to(device, non_blocking=True).split([len(tensor) for tensor in tensors])
    return tuple(part.view(x.dtype) for part, x in zip(parts, tensors, strict=True))
