"""The measurements, a file for each: a run goes on where it was stopped."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import time
from collections.abc import Callable, Coroutine
from functools import partial
from pathlib import Path
from typing import Any

from bench.serving.load import Clients, Kind, ask, cpu_seconds, figures, rss, served
from bench.serving.virtual import virtual
from edlm_engine.checkpoints.files import write_json

_log = logging.getLogger("bench.serving")
SHORT, LONG = 8, 64
MIXES = {
    "alike": [Kind("short", 1.0, SHORT)],
    "4 % long": [Kind("short", 0.96, SHORT), Kind("long", 0.04, LONG)],
    "20 % long": [Kind("short", 0.8, SHORT), Kind("long", 0.2, LONG)],
}
POLICIES = ("step", "request", "one")
MANY = 48  # clients that keep a server full, three batches of them
COUNT = {"step": 1000, "request": 1000, "one": 100}  # requests in virtual time
SOFT = 0.8  # of capacity, in an open loop
# Which policy's capacity a rate is a share of, and who is measured at it.
OPEN = (("request", ("step", "request")), ("step", ("step",)))
CLOSED: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {  # model: mix, clients of each policy
    "simulated": ("20 % long", {"step": (1, 4, 16, 32), "request": (1, 4, 16, 32), "one": (16,)}),
    "text8": ("alike", {"step": (1, 4, 16), "one": (16,)}),
    "bundled": ("alike", {"step": (1, 4, 16), "one": (16,)}),
}


def closed(model: str, policy: str, kinds: list[Kind], clients: int, seconds: float) -> dict:
    """So many clients, each with one request at a time; after a short warm-up."""
    return _loaded(model, policy, kinds, seconds, lambda load: load.closed(clients, seconds)) | {
        "clients": clients
    }


def open_(model: str, policy: str, kinds: list[Kind], rate: float, seconds: float) -> dict:
    """Poisson arrivals, the same ones for every policy at a rate; after a short warm-up."""
    return _loaded(model, policy, kinds, seconds, lambda load: load.open(rate, seconds)) | {
        "rate": rate
    }


def _loaded(
    model: str,
    policy: str,
    kinds: list[Kind],
    seconds: float,
    loop: Callable[[Clients], Coroutine[Any, Any, None]],
) -> dict:
    with served(model, policy) as (host, port, pid):
        asyncio.run(Clients((host, port), kinds).closed(2, min(1.0, seconds)))
        load, cpu = Clients((host, port), kinds, seed=1), cpu_seconds(pid)
        asyncio.run(loop(load))
        used = (cpu_seconds(pid) - cpu) / max(1, len(load.samples))
    facts = {"cpu_per_request": used, "load": os.getloadavg()[0]}
    return figures(load.samples, seconds) | facts


def memory(requests: int, clients: int = 16) -> dict[str, Any]:
    """Resident bytes of the server while it answers so many requests as fast as it can."""
    kinds = [Kind("short", 0.9, 4)] * 9 + [Kind("long", 0.1, 16)]
    seen: list[tuple[int, int]] = []
    failed = 0
    with served("free", "step") as (host, port, pid):

        async def client(number: int) -> None:
            nonlocal failed
            for i in range(number, requests, clients):
                status, _ = await ask(host, port, kinds[i % 10], i, stream=i % 4 == 0)
                failed += status != 200
                if i % max(1, requests // 100) == 0:
                    seen.append((i, rss(pid)))

        async def all_clients() -> None:
            await asyncio.gather(*(client(number) for number in range(clients)))

        began = time.monotonic()
        asyncio.run(all_clients())
    seconds = time.monotonic() - began
    return {"rss": sorted(seen), "failed": failed, "requests": requests, "seconds": seconds}


def measure(folder: Path, seconds: float, requests: int) -> dict[str, Any]:
    """All figures; what lies in the folder is not made again.

    seconds: of an open loop; a closed one takes a part of it. requests: of the memory's course.
    """
    folder.mkdir(parents=True, exist_ok=True)
    unit = partial(_unit, folder)
    queueing = {}
    for mix, kinds in MIXES.items():
        key = mix.replace(" % ", "-")
        names = [f"{policy} at {base}" for base, policies in OPEN for policy in policies]
        exact = {
            policy: unit(
                f"virtual-{key}-{policy}", partial(virtual, policy, kinds, COUNT[policy], None)
            )
            for policy in POLICIES
        }
        full = {
            policy: unit(
                f"full-{key}-{policy}",
                partial(
                    closed,
                    *("simulated", policy, kinds, 1 if policy == "one" else MANY),
                    seconds / 2.5,
                ),
            )
            for policy in POLICIES
        }
        at, exact_at = {}, {}
        for name in names:
            policy, _, base = name.partition(" at ")
            rate = SOFT * exact[base]["per_second"]
            exact_at[name] = unit(
                f"virtual-{key}-{policy}-at-{base}",
                partial(virtual, policy, kinds, COUNT[policy], rate),
            ) | {"rate": rate}
            rate = SOFT * full[base]["per_second"]
            at[name] = unit(
                f"open-{key}-{policy}-at-{base}",
                partial(open_, "simulated", policy, kinds, rate, seconds),
            )
        queueing[mix] = {
            "virtual": {"full": exact, "open": exact_at},
            "http": {"full": full, "open": at},
        }
    by_clients = {
        model: {
            policy: [
                unit(
                    f"closed-{model}-{policy}-{clients}",
                    partial(closed, model, policy, MIXES[mix], clients, seconds / 5),
                )
                for clients in numbers
            ]
            for policy, numbers in policies.items()
        }
        for model, (mix, policies) in CLOSED.items()
    }
    course = unit("memory", partial(memory, requests))
    return {"queueing": queueing, "closed": by_clients, "memory": course}


def _unit(folder: Path, name: str, make: Callable[[], dict[str, Any]]) -> dict[str, Any]:
    file = folder / f"{name}.json"
    if not file.is_file():
        began = time.monotonic()
        write_json(file, make())
        _log.info("%s: %.0f s", name, time.monotonic() - began)
    return json.loads(file.read_text(encoding="utf-8"))
