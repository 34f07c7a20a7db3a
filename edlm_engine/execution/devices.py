"""Which devices can be used here."""

from __future__ import annotations

import torch


def require_device(device: torch.device | str) -> torch.device:
    """The device; ValueError saying why, if it cannot be used here."""
    try:
        found = torch.device(device)
    except RuntimeError:
        found = None
    if found is None or found.type not in ("cpu", "cuda"):
        raise ValueError(f"device must be cpu or cuda, got {device}")
    reason = why_no_cuda() if found.type == "cuda" else None
    if reason is None and (found.index or 0) >= max(1, torch.cuda.device_count()):
        reason = f"torch sees {torch.cuda.device_count()} CUDA device(s)"
    if reason:
        raise ValueError(f"device must be one that torch sees, got {device}: {reason}")
    return found


def why_no_cuda() -> str | None:
    """Why torch cannot use CUDA tensors, None if it can."""
    if torch.version.cuda is None:
        return "this torch is built without CUDA"
    return None if torch.cuda.is_available() else "torch sees no CUDA device"
