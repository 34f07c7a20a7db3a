"""The application of `edlm serve` as one of Ray Serve: replicas with an engine each."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from edlm_engine.serving.options import ServeOptions

if TYPE_CHECKING:
    from fastapi import FastAPI

    from edlm_engine.engine import Engine


def application(
    make_engine: Callable[[], Engine],
    options: ServeOptions | None = None,
    *,
    cpus: float = 1,
    gpus: float = 0,
    min_replicas: int = 1,
    max_replicas: int = 1,
    queue_length: int | None = None,
) -> Any:
    """What `ray.serve.run` takes: the HTTP application of `edlm serve` over several replicas.

    make_engine: called once in each replica, where files that it names must be. A request's tokens
        do not depend on its replica as far as the models' arithmetic does not (`batch_invariant`).
    options: of every replica, each of which has a queue and a batch of its own.
    cpus, gpus: of a replica; with a GPU, `make_engine` should ask for device "cuda".
    min_replicas, max_replicas: Ray adds replicas while more than `queue_length` requests wait or
        run in one on average (by default as many as run at a time), and ends idle ones.

    Raises ImportError without `ray[serve]`, ValueError for numbers of replicas that do not fit.
    """
    options = options or ServeOptions()
    queue_length = queue_length or options.max_sequences
    for name, value, least in (
        ("min_replicas", min_replicas, 0),
        ("max_replicas", max_replicas, max(1, min_replicas)),
        ("queue_length", queue_length, 1),
    ):
        if value < least:
            raise ValueError(f"{name} must be >= {least}, got {value}")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        from ray import serve
    except ImportError as error:
        raise ImportError("this needs Ray: pip install 'edlm_engine[ray]'") from error

    def build() -> FastAPI:
        from edlm_engine.serving.app import create_app

        Replica.app = create_app(make_engine(), options)
        return Replica.app

    class Replica:
        app: FastAPI

        def check_health(self) -> None:
            """Ray replaces a replica whose scheduler has ended."""
            if not Replica.app.state.scheduler.alive:
                raise RuntimeError("the scheduler has ended")

    deployment = serve.deployment(
        serve.ingress(build)(Replica),
        name="edlm",
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        # What is too much is refused by the application, which says so, not held back by Ray.
        max_ongoing_requests=options.max_sequences + options.max_queue,
        graceful_shutdown_timeout_s=options.drain_seconds,
        autoscaling_config={
            "min_replicas": min_replicas,
            "max_replicas": max_replicas,
            "target_ongoing_requests": queue_length,
        },
    )
    return deployment.bind()
