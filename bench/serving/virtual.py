"""The scheduler in virtual time: a step takes a stated time, and all else none.

What runs is the real scheduler and the real session; only the clock is not real, so that the
figures are exact for their seed, on any machine and beside any other load.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from bench.serving.load import Kind, Sample, figures
from bench.serving.models import simulated
from bench.serving.server import POLICIES
from edlm_engine.serving.options import ServeOptions
from edlm_engine.serving.ticket import Ticket

STEP = 0.05  # seconds of a step of however many rows


def virtual(policy: str, kinds: Sequence[Kind], count: int, rate: float | None) -> dict[str, Any]:
    """`figures` of so many requests with Poisson arrivals at a rate; None: all of them at once."""
    kind_of, rows = POLICIES[policy]
    options = ServeOptions(max_sequences=rows, max_queue=count)
    engine = simulated(0.0)
    scheduler = kind_of(engine, options)
    draw = random.Random(0)
    asked: list[tuple[float, Kind]] = []
    due = 0.0
    for _ in range(count):
        due += draw.expovariate(rate) if rate else 0.0
        asked.append((due, draw.choices(kinds, [kind.share for kind in kinds])[0]))
    now, number, mask_id = 0.0, 0, engine.denoiser.mask_id
    running: dict[Ticket, tuple[float, Kind]] = {}
    first: dict[Ticket, float] = {}
    samples = []
    while number < count or running:
        if not running:
            now = max(now, asked[number][0])
        while number < count and asked[number][0] <= now:
            request = {"config": {"steps": asked[number][1].steps}, "seed": number}
            running[scheduler.submit(request, watched=True)] = asked[number]
            number += 1
        scheduler._enter()
        scheduler._step()
        now += STEP
        for ticket in list(running):
            if ticket.done or (ticket.latest and ticket.latest.tokens[0] != mask_id):
                first.setdefault(ticket, now)
            if ticket.done:
                due, kind = running.pop(ticket)
                ticket.result()
                samples.append(Sample(kind.name, due, first.pop(ticket) - due, now - due, 200))
    return figures(samples, now)
