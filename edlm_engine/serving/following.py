"""The texts of a request, followed until they are done."""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncGenerator
from contextlib import suppress
from typing import Any, NamedTuple

from edlm_engine.sampling.generation import Generation
from edlm_engine.serving.answers import Ended, Logprobs
from edlm_engine.serving.reading import Choice, Job
from edlm_engine.serving.scheduler import Scheduler
from edlm_engine.serving.ticket import Snapshot


class Update(NamedTuple):
    """What a step, or the end, adds to a text."""

    delta: str
    logprobs: Logprobs | None
    edlm: dict[str, Any]
    ended: Ended | None = None


async def follow(choice: Choice, job: Job, scheduler: Scheduler) -> AsyncGenerator[Update, None]:
    """The updates of one text; the last one has `ended`. Raises what ended the sequence."""
    ticket, text = choice.ticket, choice.text
    given: Logprobs = []

    def settled(log_q: list[float] | None) -> Logprobs | None:
        if not job.logprobs or log_q is None:
            return None
        new = [(piece, log_q[place]) for piece, place in text.settled()]
        given.extend(new)
        return new

    def ended(delta: str, log_q: list[float] | None, edlm: dict[str, Any]) -> Update:
        new = settled(log_q)
        edlm = {**edlm, "seed": int(ticket.seed[0]), "tokens": text.tokens}
        reason, tokens = text.finish_reason or "length", len(text.tokens)
        whole = Ended(
            choice.before + text.text, reason, tokens, given if job.logprobs else None, edlm
        )
        return Update(delta, new, edlm, whole)

    pending = choice.before
    async for snapshot in ticket.snapshots():
        delta = pending + text.update(snapshot.tokens)
        pending = ""
        facts = facts_of_snapshot(snapshot)
        if text.cut and not ticket.done:
            scheduler.cancel(ticket)  # no later step changes the text
            yield ended(delta, snapshot.log_q, facts)
            return
        if job.stream:
            if job.provisional:
                facts["provisional"] = text.provisional(snapshot.tokens)
            yield Update(delta, settled(snapshot.log_q), facts)
    generation = await ticket.generation()
    delta = pending + text.update(generation.sequences[0].tolist(), last=True)
    record = generation.record
    log_q = None if record is None else record.log_q[0].tolist()
    yield ended(delta, log_q, facts_of(generation, with_record=not job.logprobs))


def facts_of(generation: Generation, *, with_record: bool) -> dict[str, Any]:
    """The diagnostics of a sequence."""
    facts: dict[str, Any] = {
        "nfe": int(generation.nfe[0]),
        "energy_evaluations": int(generation.energy_evaluations[0]),
        "ess": [value for value in generation.ess[0].tolist() if value == value],
        "log_z": [
            value if math.isfinite(value) else None
            for value, ess in zip(
                generation.log_z[0].tolist(), generation.ess[0].tolist(), strict=True
            )
            if ess == ess
        ],
    }
    if with_record and generation.record is not None:
        facts["record"] = generation.record.to_dicts()[0]
    return facts


def facts_of_snapshot(snapshot: Snapshot) -> dict[str, Any]:
    """Where a sequence is."""
    return {
        "step": snapshot.steps,
        "steps": snapshot.most_steps,
        "nfe": snapshot.nfe,
        "ess": snapshot.ess if math.isfinite(snapshot.ess) else None,
    }


async def collect(job: Job, scheduler: Scheduler) -> list[Ended]:
    """All texts of a request, whole. Raises for the first that fails."""

    async def whole(choice: Choice) -> Ended:
        async for update in follow(choice, job, scheduler):
            if update.ended is not None:
                return update.ended
        raise AssertionError("a text without an end")

    return list(await asyncio.gather(*(whole(choice) for choice in job.choices)))


async def updates(job: Job, scheduler: Scheduler) -> AsyncGenerator[tuple[int, Update], None]:
    """The updates of all texts as they come, each with the number of its text.

    A reader that is slow misses states, not text; nothing piles up.
    """
    queue: asyncio.Queue[tuple[int, Update | Exception]] = asyncio.Queue(maxsize=1)

    async def feed(number: int, choice: Choice) -> None:
        try:
            async for update in follow(choice, job, scheduler):
                await queue.put((number, update))
        except Exception as error:
            await queue.put((number, error))

    feeds = [asyncio.create_task(feed(*each)) for each in enumerate(job.choices)]
    left = len(feeds)
    try:
        while left:
            number, update = await queue.get()
            if isinstance(update, Exception):
                raise update
            left -= update.ended is not None
            yield number, update
    finally:
        for task in feeds:
            task.cancel()
        for task in feeds:
            with suppress(asyncio.CancelledError):
                await task


def release(job: Job, scheduler: Scheduler) -> None:
    """Cancel what of a request still waits or runs."""
    for choice in job.choices:
        scheduler.cancel(choice.ticket)
