"""`edlm serve`: a server in this process, until it is told to stop."""

from __future__ import annotations

import asyncio
import logging
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import uvicorn

from edlm_engine.serving.app import create_app
from edlm_engine.serving.options import ServeOptions

if TYPE_CHECKING:
    from edlm_engine.engine import Engine

log = logging.getLogger(__name__)
STOPPING = (signal.SIGINT, signal.SIGTERM)
MARGIN = 10.0  # seconds for answers to be sent, after the last sequence has ended
CONNECTIONS = 1024


class Server(uvicorn.Server):
    """Stops at the first signal when what runs has ended, at the second at once."""

    def __init__(self, engine: Engine, options: ServeOptions, host: str, port: int):
        self.app = create_app(engine, options)
        self.scheduler, self.options = self.app.state.scheduler, options
        config = uvicorn.Config(
            self.app,
            host=host,
            port=port,
            log_config=None,
            access_log=False,
            server_header=False,
            limit_concurrency=CONNECTIONS,
            timeout_graceful_shutdown=int(options.drain_seconds + MARGIN),
        )
        super().__init__(config)

    async def startup(self, sockets: Any = None) -> None:
        await super().startup(sockets)
        for server in self.servers:
            for socket in server.sockets:
                host, port = socket.getsockname()[:2]
                where = f"[{host}]" if ":" in host else host
                print(f"edlm serve: {self.options.name} at http://{where}:{port}", flush=True)

    async def shutdown(self, sockets: Any = None) -> None:
        running = self.scheduler.running
        self.scheduler.close(self.options.drain_seconds)
        await super().shutdown(sockets)
        self.scheduler.close()  # also where the second signal came
        self.scheduler.join(MARGIN)
        cut_off = self.scheduler.cut_off
        what = f"{running - cut_off} running sequences ended, {cut_off} were cut off"
        print(f"edlm serve: stopped; {what}", flush=True)

    @contextmanager
    def capture_signals(self) -> Iterator[None]:
        """A signal that was heeded is not raised again: to stop when asked is success."""
        before = {each: signal.signal(each, self.handle_exit) for each in STOPPING}
        try:
            yield
        finally:
            for each, handler in before.items():
                signal.signal(each, handler)

    def handle_exit(self, sig: int, frame: Any) -> None:
        if self.should_exit:
            self.force_exit = True
        self.should_exit = True


def serve(engine: Engine, options: ServeOptions, *, host: str, port: int) -> int:
    """Serve until a signal says stop; the exit status. Raises OSError for a port that is taken."""
    server = Server(engine, options, host, port)
    asyncio.run(server.serve())
    return 0 if server.started else 1
