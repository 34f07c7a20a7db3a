"""Server-sent events: a request's texts while they appear."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing, suppress
from typing import Any

from fastapi import Response
from starlette.types import Receive, Scope, Send

from edlm_engine.serving.answers import Shape, usage_of
from edlm_engine.serving.errors import ApiError, api_error
from edlm_engine.serving.following import release, updates
from edlm_engine.serving.reading import Job
from edlm_engine.serving.scheduler import Scheduler

HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}
LATE = 5.0  # seconds beyond its time that a stream has to say so, to who does not read it


def timed_out(seconds: float) -> ApiError:
    message = f"the request took longer than {seconds:g} s"
    return ApiError(504, message, code="timeout", kind="server_error")


def gone_away() -> ApiError:
    """For the figures: nobody is there to read it."""
    return ApiError(499, "the client has hung up", code="cancelled")


async def gone(receive: Receive) -> None:
    """Until the client has hung up; after the body was read."""
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """The answer of a streamed request.

    Its status is known once the first step is done, so what is refused before is a plain error;
    what fails later is the last event. When the client hangs up, its sequences are cancelled.
    """

    media_type = "text/event-stream"

    def __init__(self, job: Job, shape: Shape, scheduler: Scheduler, ended: Callable[[str], None]):
        self.job, self.shape, self.scheduler, self.ended = job, shape, scheduler, ended
        self.status_code, self.background = 200, None
        self.init_headers(HEADERS)  # no body is known, so no length

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        limit = self.scheduler.options.max_seconds
        sent = asyncio.create_task(self._send(scope, receive, send, limit))
        left = asyncio.create_task(gone(receive))
        try:
            await asyncio.wait(
                {sent, left}, timeout=limit + LATE, return_when=asyncio.FIRST_COMPLETED
            )
        finally:
            release(self.job, self.scheduler)
            outcome = "cancelled" if left.done() or sent.done() else "timed_out"
            for task in (sent, left):
                task.cancel()
            with suppress(asyncio.CancelledError, OSError):  # the client went while it was sent to
                outcome = await sent
            self.ended(outcome)

    async def _send(self, scope: Scope, receive: Receive, send: Send, limit: float) -> str:
        """Send it all; how it ended."""
        started = False
        try:
            async with aclosing(self._events(time.monotonic() + limit)) as events:
                async for event in events:
                    if not started:
                        started = True
                        await self._start(send)
                    await _send_event(send, event)
            outcome = "ok"
        except Exception as caught:
            error = timed_out(limit) if isinstance(caught, asyncio.TimeoutError) else caught
            told = api_error(error)
            if not started:
                await told.response()(scope, receive, send)
                return told.outcome
            await _send_event(send, told.body())
            outcome = told.outcome
        await send({"type": "http.response.body", "body": b"data: [DONE]\n\n"})
        return outcome

    async def _start(self, send: Send) -> None:
        headers = {"type": "http.response.start", "status": 200, "headers": self.raw_headers}
        await send(headers)

    async def _events(self, deadline: float) -> AsyncGenerator[dict[str, Any], None]:
        job, shape, metrics = self.job, self.shape, self.scheduler.metrics
        offsets: dict[int, int] = {}
        tokens, begun, waited = 0, time.monotonic(), False
        async with aclosing(updates(job, self.scheduler)) as all_updates:
            while True:
                try:
                    left = deadline - time.monotonic()
                    number, update = await asyncio.wait_for(anext(all_updates), left)
                except StopAsyncIteration:
                    break
                if update.delta and not waited:
                    waited = True
                    metrics.first_text_seconds.observe(time.monotonic() - begun)
                ended = update.ended
                yield shape.chunk(
                    number,
                    update.delta,
                    first=number not in offsets,
                    offset=offsets.get(number, 0),
                    edlm=update.edlm,
                    logprobs=update.logprobs,
                    finish_reason=None if ended is None else ended.finish_reason,
                )
                offsets[number] = offsets.get(number, 0) + len(update.delta)
                tokens += 0 if ended is None else ended.tokens
        metrics.answered(job.prompt_tokens, tokens, time.monotonic() - begun)
        if job.usage:
            yield shape.usage_chunk(usage_of(job.prompt_tokens, tokens))


async def _send_event(send: Send, event: dict[str, Any]) -> None:
    data = json.dumps(event, ensure_ascii=False, allow_nan=False).encode("utf-8", "replace")
    body = b"data: " + data + b"\n\n"
    await send({"type": "http.response.body", "body": body, "more_body": True})
