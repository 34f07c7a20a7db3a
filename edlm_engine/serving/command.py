"""`edlm serve`: a server in this process, until it is told to stop."""

from __future__ import annotations

import argparse
import asyncio
import logging
import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import uvicorn

from edlm_engine.sampling.config import GenerationConfig
from edlm_engine.serving.app import create_app
from edlm_engine.serving.options import ServeOptions, options_of
from edlm_engine.serving.protocol import Protocol

if TYPE_CHECKING:
    from edlm_engine.engine import Engine

log = logging.getLogger(__name__)
STOPPING = (signal.SIGINT, signal.SIGTERM)
MARGIN = 10.0  # seconds for answers to be sent, after the last sequence has ended
CONNECTIONS = 1024


class Server(uvicorn.Server):
    """Stops at the first signal when what runs has ended, at the second at once."""

    def __init__(self, engine: Engine, options: ServeOptions):
        self.app = create_app(engine, options)
        self.scheduler, self.options = self.app.state.scheduler, options
        config = uvicorn.Config(
            self.app,
            http=Protocol,
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
            for each in server.sockets:
                host, port = each.getsockname()[:2]
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
        if threading.current_thread() is not threading.main_thread():
            yield  # signals come to the main thread alone
            return
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


def run(
    args: argparse.Namespace,
    config: GenerationConfig,
    engine_of: Callable[[argparse.Namespace], Engine],
) -> int:
    """`edlm serve` with these arguments; the exit status. What can be wrong without a model is
    found before one is loaded."""
    options = options_of(args, config)
    with bound(args.host, args.port) as own:
        server = Server(engine_of(args), options)
        asyncio.run(server.serve(sockets=[own]))
    return 0 if server.started and not server.force_exit else 1


def bound(host: str, port: int) -> socket.socket:
    """A socket for that address, before a model is loaded. Raises OSError if it cannot be had."""
    if not 0 <= port < 2**16:
        raise ValueError(f"--port must be in [0, 65535], got {port}")
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
        family, kind, protocol, _, address = found[0]
        own = socket.socket(family, kind, protocol)
        own.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        own.bind(address)
    except OSError as error:
        reason = getattr(error, "strerror", None) or error
        raise OSError(f"{host} port {port} cannot be had: {reason}") from error
    return own
