"""The bodies of requests, in OpenAI's shape: what is taken, what is ignored, what is refused."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edlm_engine.serving.errors import ApiError

# What changes no token of an answer.
IGNORED = (
    *("user", "metadata", "store", "safety_identifier", "prompt_cache_key", "service_tier"),
    *("prompt_cache_retention", "parallel_tool_calls"),
)
# What would change it, and the values that ask for nothing.
NEUTRAL: dict[str, tuple[Any, ...]] = {
    "best_of": (None, 1),
    "frequency_penalty": (None, 0),
    "presence_penalty": (None, 0),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "prediction": (None,),
    "reasoning_effort": (None,),
    "verbosity": (None,),
    "web_search_options": (None,),
    "moderation": (None,),
}
Tokens = list[int]


class Body(BaseModel):
    """A JSON object without unknown fields and without conversions."""

    model_config = ConfigDict(extra="forbid", strict=True, allow_inf_nan=False)


class StreamOptions(Body):
    include_usage: bool | None = None
    include_obfuscation: bool | None = None  # there is none


class Asked(Body):
    """What both endpoints take."""

    model: str | None = None
    n: int | None = Field(None, ge=1, le=1024)
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    max_tokens: int | None = Field(None, ge=1)
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    logit_bias: dict[str, float] | None = None
    edlm: dict[str, Any] = {}

    @property
    def stops(self) -> list[str]:
        """Where the text ends."""
        return [self.stop] if isinstance(self.stop, str) else self.stop or []


class CompletionBody(Asked):
    """Of `POST /v1/completions`."""

    prompt: str | list[str] | Tokens | list[Tokens] | None = None
    suffix: str | None = None
    echo: bool | None = None
    logprobs: int | None = None


class Part(Body):
    type: Literal["text"]
    text: str


class Message(BaseModel):
    """Of a chat; further fields, as `name`, do not reach the template."""

    model_config = ConfigDict(strict=True)
    role: str
    content: str | list[Part]

    def plain(self) -> dict[str, str]:
        """As a chat template takes it."""
        content = self.content
        if not isinstance(content, str):
            content = "".join(part.text for part in content)
        return {"role": self.role, "content": content}


class ChatBody(Asked):
    """Of `POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = None


def parsed(kind: type[Any], body: bytes) -> Any:
    """The body as that kind of request; ApiError naming the field for anything else."""
    try:
        values = _Object.model_validate_json(body).root()
    except ValidationError as error:
        raise ApiError(400, f"the body must be a JSON object: {_first(error)[1]}") from None
    for name in IGNORED:
        values.pop(name, None)
    for name, neutral in NEUTRAL.items():
        if name in values and (value := values.pop(name)) not in neutral:
            raise ApiError(
                400,
                f"{name} is not supported by this server, got {_shown(value)}",
                param=name,
                code="unsupported_parameter",
            )
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        param, message = _first(error)
        raise ApiError(400, f"{param}: {message}", param=param) from None


class _Object(BaseModel):
    """Any JSON object."""

    model_config = ConfigDict(extra="allow")

    def root(self) -> dict[str, Any]:
        return dict(self.__pydantic_extra__ or {})


def _first(error: ValidationError) -> tuple[str, str]:
    """The field and the message of the first fault, of a union the one that came furthest."""
    faults = error.errors(include_url=False, include_context=False)
    fault = faults[0]
    top = fault["loc"][:1]
    same = [each for each in faults if each["loc"][:1] == top]
    if len(same) > 1:
        kinds = " or ".join(
            dict.fromkeys(each["msg"].removeprefix("Input should be ") for each in same)
        )
        message = f"must be {kinds}"
    elif fault["type"] == "extra_forbidden":
        message = "there is no such field; the engine's own are given within edlm"
    else:
        message = fault["msg"].replace("Input should be", "must be")
    got = fault.get("input")
    if fault["type"] not in ("missing", "extra_forbidden", "json_invalid"):
        message += f", got {_shown(got)}"
    return ".".join(map(str, top if len(same) > 1 else fault["loc"])), message


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
