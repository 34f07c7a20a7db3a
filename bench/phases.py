"""Where the time of a generation goes, measured from outside: the loop itself has no timers."""

from __future__ import annotations

import ctypes
import gc
import inspect
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import torch

from edlm_engine import ops
from edlm_engine.models.denoiser import device_of
from edlm_engine.sampling import cohort

PHASES = ("denoiser", "head + draw", "energy", "resample", "plan", "everything else")


class PhaseMeter:
    """What ``read`` gained in each phase; ``with PhaseMeter(engine) as gained: generate()``.

    ``read`` is any rising number, the time by default. On CUDA a phase ends with a synchronisation,
    so that its kernels count as its own: the phases then add up to more than an untimed run.
    Entered again, it starts anew.
    """

    def __init__(self, engine, read: Callable[[], float] = time.perf_counter):
        self.engine, self.read = engine, read

    def __enter__(self) -> dict[str, float]:
        denoiser, energy = self.engine.denoiser, self.engine.energy
        self.gained, self.stack, self.active = defaultdict(float), ExitStack(), False
        self._patch(cohort, "plan_reveals", "plan")
        self._patch(denoiser, "hidden" if hasattr(denoiser, "hidden") else "logits", "denoiser")
        self._patch(ops, "head_sample_candidates", "head + draw")
        self._patch(ops, "sample_candidates", "head + draw")
        self._patch(ops, "reveal_chosen", "resample")
        if energy is not None:
            self._patch(energy, "energy", "energy")
        # Within a CUDA graph there are no calls to measure.
        self.stack.enter_context(mock.patch.object(self.engine, "cuda_graphs", False))
        self.start = self.read()
        return self.gained

    def __exit__(self, *error) -> None:
        total = self.read() - self.start
        self.stack.close()
        self.gained["everything else"] = total - sum(self.gained.values())

    def _patch(self, owner, name: str, phase: str) -> None:
        metered = self._metered(getattr(owner, name), phase)
        self.stack.enter_context(mock.patch.object(owner, name, metered))

    def _metered(self, function, phase: str):
        def run(*args, **kwargs):
            if self.active:  # a phase within a phase is part of the outer one
                return function(*args, **kwargs)
            self.active = True
            start = self.read()
            try:
                return function(*args, **kwargs)
            finally:
                synchronize(device_of(self.engine.denoiser))
                self.gained[phase] += self.read() - start
                self.active = False

        run.__signature__ = inspect.signature(function)  # which the engine reads
        return run


def synchronize(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


@contextmanager
def peak_memory(device: torch.device) -> Iterator[list[int]]:
    """Yields a one-element list that holds, afterwards, the growth of peak bytes.

    On the CPU these are resident bytes of the process, on CUDA those of torch's allocator.
    """
    gc.collect()
    grown = [0]
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        before = torch.cuda.memory_allocated(device)
        yield grown
        grown[0] = torch.cuda.max_memory_allocated(device) - before
        return
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")

    def read(key: str) -> int:
        line = next(line for line in status.read_text().splitlines() if line.startswith(key))
        return int(line.split()[1]) * 1024

    # Free pages of the heap would be used again without a growth.
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim:
        trim(0)
    clear.write_text("5")  # forgets the peak so far
    before = read("VmRSS")
    yield grown
    grown[0] = read("VmHWM") - before
