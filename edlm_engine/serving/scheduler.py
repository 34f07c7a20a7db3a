"""Requests of any thread for one session, which a worker thread steps: who runs, and who waits."""

from __future__ import annotations

import logging
import math
import threading
import time
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from edlm_engine.execution.memory import gibibytes
from edlm_engine.sampling.canvas import sequence_seeds
from edlm_engine.sampling.config import as_config
from edlm_engine.sampling.generation import Generation
from edlm_engine.sampling.request import Request, as_request, first_xt
from edlm_engine.sampling.session import Session
from edlm_engine.serving.memory import default_budget, need_of, total
from edlm_engine.serving.metrics import Metrics
from edlm_engine.serving.options import ServeOptions
from edlm_engine.serving.refusals import Cancelled, Closed, QueueFull, WaitedTooLong
from edlm_engine.serving.ticket import Snapshot, Ticket

if TYPE_CHECKING:
    from edlm_engine.engine import Engine

log = logging.getLogger(__name__)


class Scheduler:
    """Sequences of many callers in one batch: each joins it at a step and leaves when it is done.

    First come, first served: a sequence begins when those before it have begun and there is room
    for it, by `options.memory` and `options.max_sequences`. All that run take their steps together,
    so a short one leaves early beside long ones. Each is the sequence that `Engine.generate` gives
    alone, as far as a session's are.

    `submit`, `cancel` and `close` may be called from any thread; the session is stepped by a thread
    of this class, begun by `start`.
    """

    def __init__(self, engine: Engine, options: ServeOptions | None = None):
        self.engine = engine
        self.options = options or ServeOptions()
        self.budget = self.options.memory or default_budget(engine)
        self.metrics = Metrics(self.budget)
        self._changed = threading.Condition()
        self._queue: deque[Ticket] = deque()
        self._leaving: list[Ticket] = []
        self._running: dict[int, Ticket] = {}  # changed by the worker alone
        self.cut_off = 0  # sequences that `close` did not let end
        self._closed = False
        self._last_moment = math.inf
        self._thread: threading.Thread | None = None
        self._session: Session = engine.session()
        self.metrics.watch(waiting=lambda: len(self._queue), running=lambda: len(self._running))

    @property
    def alive(self) -> bool:
        """Whether requests are taken and worked on."""
        thread = self._thread
        return thread is not None and thread.is_alive() and not self._closed

    @property
    def waiting(self) -> int:
        """How many sequences wait."""
        return len(self._queue)

    @property
    def running(self) -> int:
        """How many sequences run."""
        return len(self._running)

    def start(self) -> None:
        """Begin to work. Once."""
        if self._thread is not None:
            raise RuntimeError("the scheduler was started already")
        self._thread = threading.Thread(target=self._work, name="edlm-scheduler", daemon=True)
        self._thread.start()

    def prepare(self, request: Request | Mapping[str, Any], *, watched: bool = False) -> Ticket:
        """A ticket for a request, checked and tokenized, that does not wait yet.

        Raises what `Engine.generate` raises for arguments that do not fit, and ValueError for what
        needs more than the whole memory budget.
        """
        request = as_request(request)
        config = as_config(request.config)
        xt = first_xt(self.engine, 1, config, request.prompt, request.suffix, request.canvas)
        need = need_of(self.engine, config, xt.shape[1])
        if self.budget is not None and total([need]) > self.budget:
            raise ValueError(
                f"length {xt.shape[1]} with num_candidates {config.num_candidates} needs "
                f"{gibibytes(total([need]))}, and the server has {gibibytes(self.budget)}"
            )
        seed = sequence_seeds(request.seed, 1)
        return Ticket(config, xt, seed, need, time.monotonic(), watched)

    def submit(self, request: Request | Mapping[str, Any], *, watched: bool = False) -> Ticket:
        """`prepare` a request and let it wait. Raises QueueFull, and Closed after `close`."""
        ticket = self.prepare(request, watched=watched)
        self.enqueue([ticket])
        return ticket

    def enqueue(self, tickets: list[Ticket]) -> None:
        """Let prepared sequences wait, all of them or none. Raises QueueFull and Closed."""
        with self._changed:
            if self._closed:
                raise Closed("the server is shutting down", self.options.drain_seconds)
            free = self.options.max_queue - len(self._queue)
            if len(tickets) > free:
                raise QueueFull(
                    f"{len(self._queue)} of {self.options.max_queue} places in the queue are taken,"
                    f" and this request needs {len(tickets)}",
                    self.metrics.seconds_a_sequence() * (len(tickets) - free),
                )
            self._queue.extend(tickets)
            self._changed.notify_all()

    def cancel(self, ticket: Ticket) -> None:
        """Take a sequence out: its rows are free before the next step. Nothing if it has ended."""
        with self._changed:
            if not ticket.end(Cancelled("the request was cancelled")):
                return
            if ticket in self._queue:
                self._queue.remove(ticket)
            else:
                self._leaving.append(ticket)
                self._changed.notify_all()

    def close(self, seconds: float = 0.0) -> None:
        """Take no more requests, and end those that wait; those that run have so many seconds.

        What runs on after that ends with Closed. Returns at once: `join` waits.
        """
        with self._changed:
            self._closed = True
            self._last_moment = min(self._last_moment, time.monotonic() + seconds)
            waiting, self._queue = list(self._queue), deque()
            self._changed.notify_all()
        _end(waiting, Closed("the server is shutting down", self.options.drain_seconds))
        if waiting or self._running:
            what = f"{len(self._running)} sequences run, for {seconds:g} s at most"
            log.info("closing: %s; %d that waited are refused", what, len(waiting))

    def join(self, timeout: float | None = None) -> bool:
        """After `close`, wait for the worker; whether it has ended."""
        if self._thread is not None:
            self._thread.join(timeout)
        return self._thread is None or not self._thread.is_alive()

    # The worker

    def _work(self) -> None:
        try:
            while self._wait():
                self._leave()
                self._enter()
                self._step()
        except BaseException as error:  # a defect, of which nobody must wait for ever
            log.exception("the scheduler ended")
            self.close()
            _end([*self._running.values()], RuntimeError(f"the scheduler failed: {error}"))
            raise

    def _wait(self) -> bool:
        """Until there is something to do; False once all is over."""
        with self._changed:
            self._changed.wait_for(lambda: self._queue or self._running or self._closed)
            if self._closed and self._running and time.monotonic() >= self._last_moment:
                log.warning("%d sequences did not end in time and are cut off", len(self._running))
                self.cut_off += len(self._running)
                _end(self._running.values(), Closed("the server stopped before the end", 1))
                self._running.clear()
            return bool(self._queue or self._running or not self._closed)

    def _leave(self) -> None:
        """Take out what was cancelled, and what waited too long."""
        with self._changed:
            leaving, self._leaving = self._leaving, []
            limit = time.monotonic() - self.options.max_queue_seconds
            overdue = []
            while self._queue and self._queue[0].arrived < limit:
                overdue.append(self._queue.popleft())
        for ticket in leaving:
            if self._running.pop(ticket.handle, None) is not None:
                self._session.cancel(ticket.handle)
        if overdue:
            waited = f"waited {self.options.max_queue_seconds:g} s for room"
            _end(overdue, WaitedTooLong(waited, self.metrics.seconds_a_sequence()))

    def _enter(self) -> None:
        """Let those begin, in their order, for whom there is room."""
        needs = [ticket.need for ticket in self._running.values()]
        entering = []
        with self._changed:
            while self._queue and len(needs) < self.options.max_sequences:
                needs.append(self._queue[0].need)
                if self.budget is not None and len(needs) > 1 and total(needs) > self.budget:
                    needs.pop()
                    break
                entering.append(self._queue.popleft())
        entering = [ticket for ticket in entering if not ticket.done]
        for ticket in entering:
            ticket.begun = time.monotonic()
            self.metrics.queue_seconds.observe(ticket.begun - ticket.arrived)
        if entering and not self._begin(entering):
            for ticket in entering:
                self._begin([ticket])
        self.metrics.memory_used.set(total(needs) if needs else 0)

    def _begin(self, tickets: list[Ticket]) -> bool:
        """Let sequences join the session; False if one of several failed, and none joined.

        One alone that fails ends with its error.
        """
        handles = [self._session.start(t.config, t.xt, t.seed)[0] for t in tickets]
        try:
            self._session.progress(handles[-1])  # plans them, so that what fails there shows here
        except Exception as error:
            for handle in handles:
                with suppress(KeyError):  # those after it were not even planned
                    self._session.cancel(handle)
            if len(tickets) == 1:
                tickets[0].end(error)
            self._end_lost(error)
            return False
        for ticket, handle in zip(tickets, handles, strict=True):
            ticket.handle = handle
            self._running[handle] = ticket
        return True

    def _end_lost(self, error: Exception) -> None:
        """End those that a failed join has taken with it: nobody is to wait for ever."""
        for handle, ticket in list(self._running.items()):
            try:
                self._session.progress(handle)
            except KeyError:
                del self._running[handle]
                ticket.end(error)

    def _step(self) -> None:
        if not self._running:
            return
        start = time.perf_counter()
        try:
            rows = self._session.step()
            self._tell()
            finished = self._session.finished()
        except Exception as error:  # of no single sequence: nothing of this session can be trusted
            log.exception("a step failed: %d sequences end", len(self._running))
            _end(self._running.values(), error)
            self._running.clear()
            self._session = self.engine.session()
            return
        self.metrics.stepped(rows, time.perf_counter() - start)
        for handle, generation, failure in finished:
            ticket = self._running.pop(handle, None)
            if ticket is not None:
                self._finish(ticket, generation, failure)

    def _tell(self) -> None:
        """Let those know that watch how far their sequences are."""
        for handle, ticket in self._running.items():
            if ticket.watched:
                try:
                    progress = self._session.progress(handle)
                except KeyError:  # it failed
                    continue
                ticket.tell(
                    Snapshot(
                        progress.xt.tolist(),
                        progress.steps,
                        progress.most_steps,
                        progress.nfe,
                        float(progress.ess),
                        None if progress.log_q is None else progress.log_q.tolist(),
                    )
                )

    def _finish(
        self, ticket: Ticket, generation: Generation | None, error: Exception | None
    ) -> None:
        if generation is not None:
            self.metrics.generated(generation, ticket.config.num_candidates)
            ticket.end(generation)
        else:
            assert error is not None
            ticket.end(error)


def _end(tickets: Iterable[Ticket], error: Exception) -> None:
    for ticket in list(tickets):
        ticket.end(error)
