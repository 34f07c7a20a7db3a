"""The HTTP application: OpenAI's endpoints for an engine, its state, and a page."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from importlib import resources
from typing import TYPE_CHECKING, Any

from anyio import to_thread
from fastapi import FastAPI, Request, Response
from fastapi.responses import HTMLResponse, JSONResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from edlm_engine.serving.answers import Chat, Completion, Shape, usage_of
from edlm_engine.serving.bearer import BearerOnly
from edlm_engine.serving.errors import ApiError, api_error
from edlm_engine.serving.following import collect, release
from edlm_engine.serving.options import ServeOptions
from edlm_engine.serving.reading import Job, read
from edlm_engine.serving.scheduler import Scheduler
from edlm_engine.serving.schema import ChatBody, CompletionBody, parsed
from edlm_engine.serving.stream import EventStream, gone, gone_away, timed_out

if TYPE_CHECKING:
    from edlm_engine.engine import Engine

log = logging.getLogger(__name__)
KINDS: dict[str, tuple[type[Any], type[Shape]]] = {
    "completions": (CompletionBody, Completion),
    "chat/completions": (ChatBody, Chat),
}
# The page loads nothing, talks to this server alone, and is no part of another page.
PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data:; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
BODY_SECONDS = 30.0  # to send a body in


def create_app(engine: Engine, options: ServeOptions | None = None) -> FastAPI:
    """An application that samples from an engine; `app.state.scheduler` does so from start to end.

    Its end, after `options.drain_seconds` at most, is that of the requests that run: no more are
    taken, and those that wait are refused.
    """
    scheduler = Scheduler(engine, options)
    options = scheduler.options

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        scheduler.start()
        try:
            yield
        finally:
            scheduler.close(options.drain_seconds)
            await to_thread.run_sync(scheduler.join)

    # No pages of documentation: they load scripts of others.
    app = FastAPI(title="edlm", lifespan=lifespan, openapi_url=None, docs_url=None, redoc_url=None)
    app.state.scheduler = scheduler
    if options.api_key:
        app.add_middleware(BearerOnly, key=options.api_key)
    page = resources.files("edlm_engine.serving").joinpath("page.html").read_text("utf-8")
    created = int(time.time())

    for path in KINDS:
        app.add_api_route(f"/v1/{path}", partial(_answer, path), methods=["POST"])

    @app.get("/v1/models")
    def models() -> dict[str, Any]:
        return {"object": "list", "data": [_model(scheduler, created)]}

    @app.get("/v1/models/{name:path}")
    def model(name: str) -> dict[str, Any]:
        if name != options.name:
            message = f"there is no model {name!r} here, there is {options.name!r}"
            raise ApiError(404, message, param="model", code="model_not_found")
        return _model(scheduler, created)

    @app.get("/health")
    def health() -> JSONResponse:
        state = {"waiting": scheduler.waiting, "running": scheduler.running}
        if scheduler.alive:
            return JSONResponse({"status": "ok", **state})
        return JSONResponse({"status": "closing", **state}, 503)

    @app.get("/metrics")
    def metrics() -> Response:
        return Response(scheduler.metrics.text(), media_type=CONTENT_TYPE_LATEST)

    @app.get("/")
    def index() -> HTMLResponse:
        return HTMLResponse(page, headers={"content-security-policy": PAGE_POLICY})

    @app.exception_handler(ApiError)
    async def told(_: Request, error: ApiError) -> Response:
        return error.response()

    @app.exception_handler(HTTPException)
    async def unknown(request: Request, error: HTTPException) -> Response:
        message = f"{error.detail}: {request.method} {request.url.path}"
        return ApiError(error.status_code, message, headers=dict(error.headers or {})).response()

    @app.exception_handler(Exception)
    async def failed(_: Request, error: Exception) -> Response:
        return ApiError(500, "the server failed", kind="server_error").response()

    return app


async def _answer(path: str, request: Request) -> Response:
    """The answer to a request for texts."""
    scheduler: Scheduler = request.app.state.scheduler
    kind, shape_of = KINDS[path]

    def ended(outcome: str) -> None:
        scheduler.metrics.requests.labels(path, outcome).inc()

    try:
        body = parsed(kind, await _body(request, scheduler.options.max_body))
        job = await to_thread.run_sync(read, body, scheduler)
        shape = shape_of(scheduler.options.name, job.seed)
        scheduler.enqueue([choice.ticket for choice in job.choices])
        if job.stream:
            return EventStream(job, shape, scheduler, ended)
        answer = await _whole(job, shape, scheduler, request)
    except Exception as caught:
        error = api_error(caught)
        if error.status == 500:
            log.warning("a request failed", exc_info=caught)
        ended(error.outcome)
        raise error from caught
    ended("ok")
    return answer


async def _whole(job: Job, shape: Shape, scheduler: Scheduler, request: Request) -> Response:
    """The answer when all of it is there; the client's end, or that of its time, cancels it."""
    limit, begun = scheduler.options.max_seconds, time.monotonic()
    work = asyncio.create_task(collect(job, scheduler))
    left = asyncio.create_task(gone(request.receive))
    try:
        await asyncio.wait({work, left}, timeout=limit, return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise gone_away() if left.done() else timed_out(limit)
        texts = work.result()
    finally:
        release(job, scheduler)
        for task in (work, left):
            task.cancel()
            with suppress(asyncio.CancelledError, Exception):
                await task
    tokens = sum(text.tokens for text in texts)
    scheduler.metrics.answered(job.prompt_tokens, tokens, time.monotonic() - begun)
    return JSONResponse(shape.whole(texts, usage_of(job.prompt_tokens, tokens)))


async def _body(request: Request, limit: int) -> bytes:
    """The body of a request, of JSON, no longer than the limit, and sent in time."""
    kind = request.headers.get("content-type", "").split(";")[0].strip().lower()
    if kind != "application/json":  # what a page of another origin may not send unasked
        message = f"content-type must be application/json, got {kind or 'none'}"
        raise ApiError(415, message, code="unsupported_media_type")
    too_long = ApiError(413, f"the body must have {limit} bytes at most", code="body_too_large")
    length = request.headers.get("content-length", "0")
    if length.isdecimal() and int(length) > limit:
        raise too_long

    async def all_of_it() -> bytes:
        parts, size = [], 0
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise too_long
            parts.append(part)
        return b"".join(parts)

    try:
        return await asyncio.wait_for(all_of_it(), BODY_SECONDS)
    except asyncio.TimeoutError:
        message = f"the body must come within {BODY_SECONDS:g} s"
        raise ApiError(408, message, code="body_timeout") from None
    except ClientDisconnect:
        raise gone_away() from None


def _model(scheduler: Scheduler, created: int) -> dict[str, Any]:
    engine = scheduler.engine
    return {
        "id": scheduler.options.name,
        "object": "model",
        "created": created,
        "owned_by": "edlm",
        "edlm": {
            "length": engine.denoiser.length,
            "vocab_size": engine.denoiser.vocab_size,
            "mask_id": engine.denoiser.mask_id,
            "energy": None if engine.energy is None else type(engine.energy).__name__,
            "chat": bool(getattr(engine.tokenizer, "chat_template", None)),
        },
    }
