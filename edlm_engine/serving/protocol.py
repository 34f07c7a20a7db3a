"""HTTP as uvicorn speaks it, with limits to the head of a request."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.auto import AutoHTTPProtocol

HEAD_SECONDS, MAX_HEAD = 10.0, 1 << 16  # for the head of a request: time, and bytes


class Protocol(AutoHTTPProtocol):  # type: ignore[misc, valid-type]
    """Hangs up on who does not send the head of a request in time, or sends too long a one: uvicorn
    waits for ever, and keeps all that comes. The application watches over the body."""

    _timer: asyncio.TimerHandle | None = None
    _bytes = 0  # of a head that is not whole yet

    def connection_made(self, transport: Any) -> None:
        super().connection_made(transport)
        self._watch(0)

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._watch(len(data))

    def connection_lost(self, exc: Exception | None) -> None:
        self._stop()
        super().connection_lost(exc)

    def _watch(self, size: int) -> None:
        cycle = self.cycle
        if cycle is not None and not cycle.response_complete:
            self._stop()
            return
        if cycle is None or not cycle.more_body:  # else the rest of a body answered early
            self._bytes += size
        if self._bytes > MAX_HEAD:
            self.transport.close()
        elif self._timer is None:
            self._timer = self.loop.call_later(HEAD_SECONDS, self.transport.close)

    def _stop(self) -> None:
        self._bytes = 0
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
