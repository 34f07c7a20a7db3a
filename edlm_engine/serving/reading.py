"""From the body of a request to sequences that wait to run."""

from __future__ import annotations

import secrets
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from edlm_engine.sampling.aliases import named_fields
from edlm_engine.sampling.canvas import sequence_seeds
from edlm_engine.sampling.config import GenerationConfig
from edlm_engine.sampling.law import ARGMAX
from edlm_engine.sampling.request import Request
from edlm_engine.serving.errors import ApiError
from edlm_engine.serving.scheduler import Scheduler
from edlm_engine.serving.schema import Asked, ChatBody, CompletionBody
from edlm_engine.serving.text import Text, decoder
from edlm_engine.serving.ticket import Ticket

FIELDS = [field.name for field in fields(GenerationConfig)]
MOST_STOPS, MOST_SWEEPS = 4, 100
DEFAULT_NEW_TOKENS = 128  # of a denoiser without a length of its own
BAD = (ValueError, TypeError, OverflowError, MemoryError, RecursionError)


@dataclass
class Choice:
    """One text of the answer."""

    ticket: Ticket
    text: Text
    before: str = ""  # the prompt, where it is to be repeated


@dataclass
class Job:
    """What a request asks for."""

    choices: list[Choice]
    seed: int
    prompt_tokens: int
    stream: bool = False
    usage: bool = False  # as a last event
    logprobs: bool = False
    provisional: bool = True


def read(body: Asked, scheduler: Scheduler) -> Job:
    """The sequences of a request, prepared. ApiError for what cannot be, by the field's name."""
    name = scheduler.options.name
    if body.model not in (None, name):
        message = f"there is no model {body.model!r} here, there is {name!r}"
        raise ApiError(404, message, param="model", code="model_not_found")
    stops = body.stops
    if len(stops) > MOST_STOPS or not all(stops):
        raise ApiError(400, f"stop must be 1 to {MOST_STOPS} texts, none empty", param="stop")
    if body.stream_options is not None and not body.stream:
        raise ApiError(400, "stream_options must come with stream", param="stream_options")
    own = dict(body.edlm)
    provisional = own.pop("provisional", True)
    if not isinstance(provisional, bool):
        message = f"edlm.provisional must be true or false, got {provisional!r}"
        raise ApiError(400, message, param="edlm.provisional")
    logprobs = _wants_logprobs(body)
    config = _config(body, own, scheduler, logprobs)
    prompts, suffix = _known(body, scheduler)
    count = body.n or 1
    if len(prompts) * count > scheduler.options.max_outputs:
        message = f"prompts times n must be <= {scheduler.options.max_outputs}"
        raise ApiError(400, f"{message}, got {len(prompts)} times {count}", param="n")
    # JavaScript's numbers hold it, so that any client can give it back.
    seed = secrets.randbits(53) if body.seed is None else body.seed
    seeds = sequence_seeds(seed, len(prompts) * count)
    watched = bool(body.stream or stops)
    choices, prompt_tokens = [], 0
    for number, prompt in enumerate(prompts):
        try:
            first = scheduler.prepare(Request(config, 0, prompt, suffix), watched=watched)
        except BAD as error:
            raise _blamed(error, body) from error
        canvas = first.xt[0].tolist()
        prompt_tokens += sum(token != scheduler.engine.denoiser.mask_id for token in canvas)
        for i in range(number * count, (number + 1) * count):
            text = _text(scheduler, canvas, config, stops)
            before = _before(body, prompt, text)
            choices.append(Choice(first.twin(seeds[i : i + 1]), text, before))
    usage = bool(body.stream_options and body.stream_options.include_usage)
    return Job(choices, seed, prompt_tokens, bool(body.stream), usage, logprobs, provisional)


def _wants_logprobs(body: Asked) -> bool:
    rule = "the log-probability of the token that was drawn is kept, not those of others"
    if isinstance(body, CompletionBody):
        if body.logprobs not in (None, 0, 1):
            message = f"logprobs must be 0 or 1, got {body.logprobs}: {rule}"
            raise ApiError(400, message, param="logprobs")
        if body.logprobs is not None and body.echo:
            message = "logprobs must be left out with echo: known tokens are not drawn"
            raise ApiError(400, message, param="logprobs")
        return body.logprobs is not None
    assert isinstance(body, ChatBody)
    if body.top_logprobs not in (None, 0):
        message = f"top_logprobs must be 0, got {body.top_logprobs}: {rule}"
        raise ApiError(400, message, param="top_logprobs")
    return bool(body.logprobs)


def _config(
    body: Asked, own: Mapping[str, Any], scheduler: Scheduler, logprobs: bool
) -> GenerationConfig:
    """The server's configuration with what the request says."""
    most = body.max_tokens
    if isinstance(body, ChatBody) and body.max_completion_tokens is not None:
        if most is not None:
            message = "max_tokens must be left out beside max_completion_tokens"
            raise ApiError(400, message, param="max_tokens")
        most = body.max_completion_tokens
    asked = {
        "temperature": body.temperature,
        "top_p": body.top_p,
        "logit_bias": body.logit_bias,
        "new_tokens": most,
        "record": True if logprobs else None,
    }
    given = {name: value for name, value in asked.items() if value is not None}
    if body.temperature == 0:
        given |= {**ARGMAX, "temperature": 1.0}
    options = scheduler.options
    try:
        fields_ = named_fields(own, FIELDS)
        twice = next((n for n in fields_ if n in given and fields_[n] != given[n]), None)
        if twice is not None:
            raise ValueError(f"{twice} must be given once, got {given[twice]} and {fields_[twice]}")
        fields_ |= given
        base = options.config
        if fields_.keys() & {"length", "new_tokens"}:
            base = replace(base, length=None, new_tokens=None)
        elif getattr(scheduler.engine.denoiser, "any_length", False) and not (
            base.length or base.new_tokens
        ):
            base = replace(base, new_tokens=DEFAULT_NEW_TOKENS)
        config = replace(base, **fields_)
        for name, limit in (
            ("steps", options.max_steps),
            ("num_candidates", options.max_candidates),
            ("shared_rests", options.max_candidates),
            ("sweeps", MOST_SWEEPS),
        ):
            value = getattr(config, name)
            if value is not None and value > limit:
                raise ValueError(f"{name} must be <= {limit} on this server, got {value}")
        if isinstance(body, ChatBody) and "eos_id" not in fields_ and config.keeps_revealed:
            config = replace(config, eos_id=config.eos_id or _eos_id(scheduler.engine.tokenizer))
    except BAD as error:
        raise _blamed(error, body) from error
    return config


def _eos_id(tokenizer: Any) -> int | None:
    """The token at which an answer of a chat ends, where the tokenizer names one."""
    special = getattr(tokenizer, "special", {})
    return special.get("eos_token", getattr(tokenizer, "eos_token_id", None))


def _known(body: Asked, scheduler: Scheduler) -> tuple[list[Any], str | None]:
    """The prompts, as `Request` takes them, and the suffix."""
    if isinstance(body, ChatBody):
        chat = [message.plain() for message in body.messages]
        prompts: list[Any] = [chat]
        suffix = None
        size, field = sum(len(message["content"]) for message in chat), "messages"
    else:
        assert isinstance(body, CompletionBody)
        prompts = _prompts(body.prompt)
        suffix, field = body.suffix or None, "prompt"
        size = sum(len(prompt or ()) for prompt in prompts) + len(suffix or "")
    if size > scheduler.options.max_prompt:
        message = f"{field} must be of {scheduler.options.max_prompt} characters or tokens at most"
        raise ApiError(400, f"{message}, got {size}", param=field)
    return prompts, suffix


def _prompts(prompt: str | Sequence[Any] | None) -> list[Any]:
    if prompt is None or isinstance(prompt, str):
        return [prompt or None]
    if not prompt:
        raise ApiError(400, "prompt must not be an empty list", param="prompt")
    return [list(prompt)] if isinstance(prompt[0], int) else [each or None for each in prompt]


def _text(
    scheduler: Scheduler, canvas: list[int], config: GenerationConfig, stops: list[str]
) -> Text:
    mask_id = scheduler.engine.denoiser.mask_id
    free = [place for place, token in enumerate(canvas) if token == mask_id] or [len(canvas)]
    return Text(
        decoder(scheduler.engine.tokenizer),
        canvas,
        mask_id=mask_id,
        prompt=free[0],
        suffix=max(0, len(canvas) - 1 - free[-1]),
        eos_id=config.eos_id,
        stop=stops,
        keeps_revealed=config.keeps_revealed,
    )


def _before(body: Asked, prompt: Any, text: Text) -> str:
    if not (isinstance(body, CompletionBody) and body.echo):
        return ""
    return prompt if isinstance(prompt, str) else text.prompt


def _blamed(error: Exception, body: Asked) -> ApiError:
    """An error of the engine, whose messages begin with the name of the field."""
    message = str(error) or type(error).__name__
    word = message.split(" ", 1)[0]
    asked = {
        "new_tokens": ("max_tokens", "max_completion_tokens"),
        "length": ("max_tokens", "max_completion_tokens"),
        "record": ("logprobs",),
    }
    param = None
    if word in FIELDS:
        names = (word, *asked.get(word, ()))
        found = (name for name in names if getattr(body, name, None) is not None)
        own = f"edlm.{word}"
        param = own if word in body.edlm else next(found, own)
    elif word in ("prompt", "suffix"):
        param = "messages" if isinstance(body, ChatBody) else word
    elif word == "config":
        param, message = "edlm", message.replace("config has", "edlm has", 1)
    return ApiError(400, message, param=param)
