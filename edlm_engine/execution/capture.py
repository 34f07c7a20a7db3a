"""How functions are recorded on a device, to be run again as a CUDA graph."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from threading import get_ident
from typing import Protocol

import torch


class Capture(Protocol):
    """How graphs are made on a device."""

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        """Run a function twice, to warm up and to record it; the result runs the record again."""
        ...

    def turn(self) -> AbstractContextManager[None]:
        """Within the body, replays come after those of the turn before, however that one ended."""
        ...


def capture_on(device: torch.device) -> Capture | None:
    """How functions are captured on a device; None where they are not."""
    return CudaCapture(device) if device.type == "cuda" else None


class CudaCapture:
    """Captures CUDA graphs, all in one memory pool: they must not run at the same time.

    Raises RuntimeError if the function waits for the device or cannot be captured.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()
        self._done = torch.cuda.Event()  # until it is recorded, waiting for it is nothing
        self._user: torch.cuda.Stream | None = None  # the stream of the turn

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        # The device must be the current one: torch waits for that when a capture begins.
        with torch.cuda.device(self.device):
            outside = torch.cuda.current_stream(self.device)
            self.stream.wait_stream(outside)
            # A capture that fails leaves torch's allocator unable to free memory (before torch
            # 2.12), so what would make it fail is looked for in the warm-up.
            try:
                with torch.cuda.stream(self.stream), _refused_waits():
                    function()
            finally:
                outside.wait_stream(self.stream)
            graph = torch.cuda.CUDAGraph()
            # Entering waits for the device. Other threads may go on meanwhile.
            with torch.cuda.graph(
                graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"
            ):
                function()
        return graph.replay

    @contextmanager
    def turn(self) -> Iterator[None]:
        """See `Capture.turn`; a turn within a turn, on whatever stream, comes within its order."""
        outer, stream = self._user, torch.cuda.current_stream(self.device)
        if outer is not None:
            self._done.record(outer)
        stream.wait_event(self._done)
        self._user = stream
        try:
            yield
        finally:
            self._done.record(stream)
            self._user = outer
            if outer is not None:
                outer.wait_event(self._done)


@contextmanager
def _refused_waits() -> Iterator[None]:
    """RuntimeError after a body in which torch noticed that this thread waits for the device."""
    thread, before = get_ident(), torch.cuda.get_sync_debug_mode()
    waits: list[str] = []
    with warnings.catch_warnings():
        show = warnings.showwarning

        def hear(message, category, filename, lineno, file=None, line=None):
            if "synchronizing CUDA operation" not in str(message):
                show(message, category, filename, lineno, file, line)
            elif get_ident() == thread:
                waits.append(f"{message} ({filename}:{lineno})")

        warnings.showwarning = hear
        warnings.filterwarnings("always", ".*synchronizing CUDA operation")
        # Not "error": the mode is the process's, and other threads may wait.
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)
    if waits:
        raise RuntimeError(waits[0])
