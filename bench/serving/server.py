"""The server under load, in a process of its own."""

from __future__ import annotations

import argparse
import asyncio

import torch

from bench.serving.models import MODELS
from edlm_engine.serving import app
from edlm_engine.serving.command import Server, bound
from edlm_engine.serving.options import ServeOptions
from edlm_engine.serving.scheduler import Scheduler

ROWS = 16


class RequestLevel(Scheduler):
    """Batches of requests: the next is formed of those that wait when the last has run to its end.

    A text is still sent as soon as it is done, and not only with the rest of its batch.
    """

    def _enter(self) -> None:
        if not self._running:
            super()._enter()


POLICIES = {"step": (Scheduler, ROWS), "request": (RequestLevel, ROWS), "one": (Scheduler, 1)}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model", choices=MODELS)
    parser.add_argument("policy", choices=POLICIES)
    args = parser.parse_args()
    torch.set_num_threads(1)
    scheduler, rows = POLICIES[args.policy]
    app.Scheduler = scheduler  # type: ignore[misc]
    options = ServeOptions(max_sequences=rows, max_queue=100_000, max_queue_seconds=3600)
    with bound("127.0.0.1", 0) as own:
        asyncio.run(Server(MODELS[args.model](), options).serve(sockets=[own]))


if __name__ == "__main__":
    main()
