"""Errors in OpenAI's shape."""

from __future__ import annotations

from typing import Any

from fastapi.responses import JSONResponse

from edlm_engine.serving.refusals import Cancelled, Closed, QueueFull, Refused, WaitedTooLong

INVALID = "invalid_request_error"


class ApiError(Exception):
    """What a client is told: a status, a message, the field that is to blame, and a code."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        param: str | None = None,
        code: str | None = None,
        kind: str = INVALID,
        headers: dict[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.param, self.code = status, message, param, code
        self.kind, self.headers = kind, headers

    def body(self) -> dict[str, Any]:
        """As OpenAI's API writes it."""
        error = {"message": self.message, "type": self.kind, "param": self.param, "code": self.code}
        return {"error": error}

    def response(self) -> JSONResponse:
        return JSONResponse(self.body(), self.status, self.headers)

    @property
    def outcome(self) -> str:
        """How the metrics name it."""
        names = {499: "cancelled", 504: "timed_out", 429: "refused", 503: "refused"}
        return names.get(self.status, "failed" if self.status >= 500 else "invalid")


def api_error(error: Exception) -> ApiError:
    """What became of a sequence, as its client is told."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, Refused):
        status, code, kind = {
            QueueFull: (429, "queue_full", "rate_limit_error"),
            WaitedTooLong: (503, "queue_timeout", "server_error"),
            Closed: (503, "shutting_down", "server_error"),
        }[type(error)]
        retry = {"retry-after": str(error.retry_after)}
        return ApiError(status, str(error), code=code, kind=kind, headers=retry)
    if isinstance(error, Cancelled):
        return ApiError(499, str(error), code="cancelled", kind="server_error")
    message = f"the generation failed: {type(error).__name__}: {error}"
    return ApiError(500, message, code="generation_failed", kind="server_error")
