"""A sequence in the scheduler's hands: where it is, and what becomes of it."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable
from concurrent.futures import Future, InvalidStateError
from dataclasses import dataclass, field
from typing import NamedTuple

from torch import Tensor

from edlm_engine.sampling.config import GenerationConfig
from edlm_engine.sampling.generation import Generation
from edlm_engine.serving.memory import Need


class Snapshot(NamedTuple):
    """A sequence after a step, on the host."""

    tokens: list[int]  # [L], the mask where hidden
    steps: int  # taken
    most_steps: int
    nfe: int
    ess: float  # of the last energy step, NaN without one
    log_q: list[float] | None = None  # [L], NaN where nothing was drawn; with `record`


@dataclass(eq=False)
class Ticket:
    """Given by `Scheduler.submit`. `result` may be waited for by a thread or by a coroutine.

    watched: snapshots are taken after each step, which waits for the device. A slow reader misses
    some of them, and nothing piles up.
    """

    config: GenerationConfig
    xt: Tensor  # [1, L] at first
    seed: Tensor  # [1]
    need: Need
    arrived: float  # by time.monotonic
    watched: bool = False
    begun: float | None = None
    handle: int = -1  # in the session, once it has begun
    latest: Snapshot | None = None
    future: Future[Generation] = field(default_factory=Future)
    _listener: Callable[[], object] | None = None

    def twin(self, seed: Tensor) -> Ticket:
        """Another sequence like it, by its own seed [1]."""
        return Ticket(self.config, self.xt, seed, self.need, self.arrived, self.watched)

    @property
    def done(self) -> bool:
        """Whether it ended, by itself or not."""
        return self.future.done()

    def result(self, timeout: float | None = None) -> Generation:
        """Wait for it in a thread. Raises what ended it; Cancelled if it was cancelled."""
        return self.future.result(timeout)

    async def generation(self) -> Generation:
        """Wait for it in a coroutine."""
        return await asyncio.shield(asyncio.wrap_future(self.future))

    async def snapshots(self) -> AsyncIterator[Snapshot]:
        """The latest state whenever there is a newer one, until it ends. For one reader."""
        loop, news, seen = asyncio.get_running_loop(), asyncio.Event(), None
        self._listener = lambda: loop.call_soon_threadsafe(news.set)
        self.future.add_done_callback(lambda _: self.tell())
        while True:
            if self.latest is not seen:
                seen = self.latest
                assert seen is not None
                yield seen
            elif self.done:
                return
            else:
                await news.wait()
                news.clear()

    def tell(self, snapshot: Snapshot | None = None) -> None:
        """Wake the reader, with a newer state if there is one. From any thread."""
        if snapshot is not None:
            self.latest = snapshot
        listener = self._listener
        if listener is not None:
            try:
                listener()
            except RuntimeError:  # its loop is closed: nobody listens any more
                self._listener = None

    def end(self, outcome: Generation | Exception) -> bool:
        """Settle it, once; whether it was this call that did."""
        try:
            if isinstance(outcome, Exception):
                self.future.set_exception(outcome)
            else:
                self.future.set_result(outcome)
        except InvalidStateError:
            return False
        return True
