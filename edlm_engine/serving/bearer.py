"""The token that clients must have."""

from __future__ import annotations

import hashlib
import hmac

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from edlm_engine.serving.errors import ApiError

OPEN = ("/", "/health")


class BearerOnly:
    """Answers 401 to who lacks the token, but on the page and for the state of health."""

    def __init__(self, app: ASGIApp, key: str):
        self.app, self.digest = app, _digest(key)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] in OPEN or self._has_key(Headers(scope=scope)):
            await self.app(scope, receive, send)
            return
        message = "the header Authorization must be Bearer and this server's token"
        error = ApiError(
            401,
            message,
            code="invalid_api_key",
            kind="authentication_error",
            headers={"www-authenticate": "Bearer"},
        )
        await error.response()(scope, receive, send)

    def _has_key(self, headers: Headers) -> bool:
        """Whether the token is the key: the time it takes tells nothing of it."""
        scheme, _, token = headers.get("authorization", "").partition(" ")
        same = hmac.compare_digest(_digest(token.strip()), self.digest)
        return same and scheme.lower() == "bearer"


def _digest(text: str) -> bytes:
    return hashlib.sha256(text.encode()).digest()
