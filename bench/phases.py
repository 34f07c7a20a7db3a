"""Where the time of a generation goes, measured from outside: the loop itself has no timers."""

from __future__ import annotations

import time
from collections import defaultdict
from contextlib import ExitStack, contextmanager
from pathlib import Path
from unittest import mock

import torch

from edlm_engine import engine as engine_module
from edlm_engine import ops

PHASES = ("plan", "denoiser", "head + draw", "energy", "resample", "everything else")


class PhaseTimer:
    """Seconds per phase; ``with PhaseTimer(engine) as seconds: engine.generate(...)``.

    On CUDA a phase ends with a synchronisation, so that its kernels count as its own: the phases
    then add up to more than an untimed run.
    """

    def __init__(self, engine):
        self.engine = engine
        self.seconds = defaultdict(float)
        self.stack = ExitStack()
        self.active = False

    def __enter__(self) -> dict[str, float]:
        denoiser, energy = self.engine.denoiser, self.engine.energy
        self._patch(engine_module, "plan_reveals", "plan")
        self._patch(denoiser, "hidden" if hasattr(denoiser, "hidden") else "logits", "denoiser")
        self._patch(ops, "head_sample_candidates", "head + draw")
        self._patch(ops, "sample_candidates", "head + draw")
        self._patch(ops, "resample", "resample")
        if energy is not None:
            self.stack.enter_context(
                mock.patch.object(self.engine, "energy", _Timed(energy, self._timed("energy")))
            )
        self.start = time.perf_counter()
        return self.seconds

    def __exit__(self, *error) -> None:
        total = time.perf_counter() - self.start
        self.stack.close()
        self.seconds["everything else"] = total - sum(self.seconds.values())

    def _patch(self, owner, name: str, phase: str) -> None:
        timed = self._timed(phase)(getattr(owner, name))
        self.stack.enter_context(mock.patch.object(owner, name, timed))

    def _timed(self, phase: str):
        def decorate(function):
            def run(*args, **kwargs):
                if self.active:  # a phase within a phase is part of the outer one
                    return function(*args, **kwargs)
                self.active = True
                start = time.perf_counter()
                try:
                    return function(*args, **kwargs)
                finally:
                    if torch.cuda.is_available():
                        torch.cuda.synchronize()
                    self.seconds[phase] += time.perf_counter() - start
                    self.active = False

            return run

        return decorate


class _Timed:
    """An energy that is timed, with the attributes of the one it wraps."""

    def __init__(self, energy, decorate):
        self._energy = energy
        self._call = decorate(energy)

    def __call__(self, *args):
        return self._call(*args)

    def __getattr__(self, name):
        return getattr(self._energy, name)


@contextmanager
def peak_memory():
    """Yields a one-element list that holds, afterwards, the growth of peak resident bytes."""
    clear, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")

    def read(key: str) -> int:
        line = next(line for line in status.read_text().splitlines() if line.startswith(key))
        return int(line.split()[1]) * 1024

    clear.write_text("5")  # forgets the peak so far
    before, grown = read("VmRSS"), [0]
    yield grown
    grown[0] = read("VmHWM") - before
