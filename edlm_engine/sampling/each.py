"""Many requests through one session, a bounded number at a time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from edlm_engine.sampling.generation import Generation
from edlm_engine.sampling.request import Request, Sampler
from edlm_engine.sampling.session import Session


def generate_requests(
    sampler: Sampler, requests: Iterable[Request | Mapping[str, Any]], batch_size: int | None
) -> Iterator[tuple[int, Generation | Exception]]:
    """(a request's number, its generation or why there is none), as they end.

    batch_size: how many run at a time, the next beginning as one ends; None is all of them.
    """
    session = Session(sampler, max_sequences=batch_size)
    waiting = iter(enumerate(requests))
    numbers: dict[int, int] = {}  # by handle
    more = True
    while more or numbers:
        while more and (batch_size is None or len(session) < batch_size):
            number, request = next(waiting, (-1, {}))
            more = number >= 0
            if more:
                try:
                    numbers[session.add(request)] = number
                except Exception as error:
                    yield number, error
        session.step()
        for done in session.finished():
            result = done.error if done.generation is None else done.generation
            assert result is not None
            yield numbers.pop(done.handle), result
