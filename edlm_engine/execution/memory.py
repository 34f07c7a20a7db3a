"""Whether what a call needs fits the memory there is, asked before any of it is taken."""

from __future__ import annotations

import os
from pathlib import Path

import torch

# Below this nothing is asked: it would cost more than it could tell.
UNASKED = 1 << 30
CGROUP = Path("/sys/fs/cgroup")


def require_memory(what: str, needed: int, device: torch.device) -> None:
    """Raise MemoryError if `needed` bytes are more than the device has left."""
    if needed <= UNASKED:
        return
    available = available_bytes(device)
    if available is not None and needed > available:
        raise MemoryError(
            f"{what} needs at least {gibibytes(needed)}, and {device.type} has "
            f"{gibibytes(available)} left: generate fewer at a time"
        )


def gibibytes(count: int) -> str:
    return f"{count / 2**30:,.1f} GiB"


def available_bytes(device: torch.device) -> int | None:
    """Bytes that can still be taken on a device, None where the system does not tell.

    On the CPU what the kernel counts as available, or less within a control group.
    """
    if device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(device)
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return free + kept
    limits = [limit for limit in (_meminfo(), _control_group()) if limit is not None]
    return min(limits, default=None)


def _meminfo() -> int | None:
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:  # not Linux: all there is, in use or not
        pages = os.sysconf("SC_PHYS_PAGES") if hasattr(os, "sysconf") else -1
        return pages * os.sysconf("SC_PAGE_SIZE") if pages > 0 else None
    found = [line.split() for line in lines if line.startswith("MemAvailable:")]
    return int(found[0][1]) * 1024 if found else None


def _control_group() -> int | None:
    """What the group's limit leaves (version 2), its reclaimable file cache counted as free."""
    try:
        limit = (CGROUP / "memory.max").read_text().strip()
        used = int((CGROUP / "memory.current").read_text())
        stat = dict(line.split() for line in (CGROUP / "memory.stat").read_text().splitlines())
    except OSError:
        return None
    if limit == "max":
        return None
    return int(limit) - used + int(stat.get("inactive_file", 0))
