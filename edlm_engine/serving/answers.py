"""The answers of both endpoints, in OpenAI's shape."""

from __future__ import annotations

import math
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from edlm_engine.version import __version__

FINGERPRINT = f"edlm-{__version__}"
Logprobs = list[tuple[str, float]]


class Ended(NamedTuple):
    """A text that is done."""

    text: str
    finish_reason: str
    tokens: int
    logprobs: Logprobs | None
    edlm: dict[str, Any]


@dataclass
class Shape:
    """How an endpoint writes; one for each answer."""

    model: str
    seed: int
    prefix: str = ""
    object: str = ""
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self):
        self.id = f"{self.prefix}-{uuid.uuid4().hex}"

    def whole(self, ended: list[Ended], usage: dict[str, Any]) -> dict[str, Any]:
        """The answer that is not streamed."""
        choices = [
            {
                "index": index,
                **self.content(one.text),
                "logprobs": None if one.logprobs is None else self.logprobs(one.logprobs, 0),
                "finish_reason": one.finish_reason,
                "edlm": one.edlm,
            }
            for index, one in enumerate(ended)
        ]
        return {**self._head(self.object), "choices": choices, "usage": usage}

    def chunk(
        self,
        index: int,
        delta: str,
        *,
        first: bool,
        offset: int,
        edlm: dict[str, Any],
        logprobs: Logprobs | None,
        finish_reason: str | None = None,
    ) -> dict[str, Any]:
        """An event of a stream."""
        choice = {
            "index": index,
            **self.delta(delta, first),
            "logprobs": None if logprobs is None else self.logprobs(logprobs, offset),
            "finish_reason": finish_reason,
            "edlm": edlm,
        }
        return {**self._head(self.chunk_object), "choices": [choice]}

    def usage_chunk(self, usage: dict[str, Any]) -> dict[str, Any]:
        return {**self._head(self.chunk_object), "choices": [], "usage": usage}

    @property
    def chunk_object(self) -> str:
        return self.object

    def content(self, text: str) -> dict[str, Any]:
        raise NotImplementedError

    def delta(self, text: str, first: bool) -> dict[str, Any]:
        return self.content(text)

    def logprobs(self, logprobs: Logprobs, offset: int) -> dict[str, Any]:
        raise NotImplementedError

    def _head(self, kind: str) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "system_fingerprint": FINGERPRINT,
            "edlm": {"seed": self.seed},
        }


@dataclass
class Completion(Shape):
    prefix: str = "cmpl"
    object: str = "text_completion"

    def content(self, text: str) -> dict[str, Any]:
        return {"text": text}

    def logprobs(self, logprobs: Logprobs, offset: int) -> dict[str, Any]:
        offsets = []
        for token, _ in logprobs:
            offsets.append(offset)
            offset += len(token)
        return {
            "tokens": [token for token, _ in logprobs],
            "token_logprobs": [_number(value) for _, value in logprobs],
            "top_logprobs": None,
            "text_offset": offsets,
        }


@dataclass
class Chat(Shape):
    prefix: str = "chatcmpl"
    object: str = "chat.completion"

    @property
    def chunk_object(self) -> str:
        return "chat.completion.chunk"

    def content(self, text: str) -> dict[str, Any]:
        return {"message": {"role": "assistant", "content": text, "refusal": None}}

    def delta(self, text: str, first: bool) -> dict[str, Any]:
        role = {"role": "assistant"} if first else {}
        return {"delta": {**role, "content": text}}

    def logprobs(self, logprobs: Logprobs, offset: int) -> dict[str, Any]:
        content = [
            {
                "token": token,
                "logprob": _number(value),
                "bytes": list(token.encode()),
                "top_logprobs": [],
            }
            for token, value in logprobs
        ]
        return {"content": content, "refusal": None}


def usage_of(prompt_tokens: int, completion_tokens: int) -> dict[str, Any]:
    """The counts of tokens."""
    return {
        "prompt_tokens": prompt_tokens,
        "completion_tokens": completion_tokens,
        "total_tokens": prompt_tokens + completion_tokens,
    }


def _number(value: float) -> float | None:
    return value if math.isfinite(value) else None
