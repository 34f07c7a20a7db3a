"""Clients: a closed loop of so many at a time, or an open one whose requests come by themselves."""

from __future__ import annotations

import asyncio
import json
import os
import random
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]


@dataclass(frozen=True)
class Kind:
    """A kind of request: its name, its share of all, and its steps."""

    name: str
    share: float
    steps: int


@dataclass
class Sample:
    """A request: seconds from the moment it was due, not from when it could be sent."""

    kind: str
    due: float  # since the start
    first: float | None  # to the first text that stays
    latency: float
    status: int  # 0: hung up on


@contextmanager
def served(model: str, policy: str) -> Iterator[tuple[str, int, int]]:
    """(host, port, process id) of a server, which is ended afterwards."""
    command = [sys.executable, "-m", "bench.serving.server", model, policy]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes: dict[str, Any] = {"stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, cwd=ROOT, env=environment, **pipes) as process:
        try:
            assert process.stdout is not None
            line = process.stdout.readline()
            if "http://" not in line:
                raise RuntimeError(f"the server did not start: {line!r}")
            host, port = line.strip().rpartition("http://")[2].split(":")
            yield host, int(port), process.pid
        finally:
            process.terminate()
            process.communicate()


async def ask(
    host: str, port: int, kind: Kind, seed: int, stream: bool = True
) -> tuple[int, float | None]:
    """(status, the moment of the first text that stays) of a request, read to its end."""
    body = {"seed": seed, "stream": stream, "edlm": {"steps": kind.steps}}
    if stream:
        body["edlm"]["provisional"] = False  # type: ignore[index]
    data = json.dumps(body).encode()
    reader, writer = await asyncio.open_connection(host, port)
    try:
        head = f"POST /v1/completions HTTP/1.1\r\nhost: {host}\r\nconnection: close\r\n"
        head += f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
        writer.write(head.encode() + data)
        line = await reader.readline()
        status = int(line.split()[1]) if line else 0  # hung up on
        first = None
        async for line in reader:
            if first is None and line.startswith(b"data: {"):
                choices = json.loads(line[6:])["choices"]
                if choices and choices[0]["text"]:
                    first = time.perf_counter()
        return status, first
    finally:
        writer.close()


class Clients:
    """Requests of several kinds, in an order that a seed decides."""

    def __init__(
        self, where: tuple[str, int], kinds: list[Kind], seed: int = 0, stream: bool = True
    ):
        self.where, self.kinds, self.random = where, kinds, random.Random(seed)
        self.samples: list[Sample] = []
        self.begun, self.number, self.stream = time.perf_counter(), 0, stream

    async def request(self, due: float) -> None:
        kind = self.random.choices(self.kinds, [kind.share for kind in self.kinds])[0]
        self.number += 1
        status, first = await ask(*self.where, kind, self.number, self.stream)
        end = time.perf_counter() - self.begun
        at = None if first is None else first - self.begun - due
        self.samples.append(Sample(kind.name, due, at, end - due, status))

    async def closed(self, clients: int, seconds: float) -> None:
        """Each client asks again as soon as it is answered."""

        async def client() -> None:
            while (now := time.perf_counter() - self.begun) < seconds:
                await self.request(now)

        await asyncio.gather(*(client() for _ in range(clients)))

    async def open(self, rate: float, seconds: float) -> None:
        """Poisson arrivals at so many a second; waits for the last answer."""
        due, asked = self.random.expovariate(rate), []
        while due < seconds:
            await asyncio.sleep(max(0.0, self.begun + due - time.perf_counter()))
            asked.append(asyncio.create_task(self.request(due)))
            due += self.random.expovariate(rate)
        await asyncio.gather(*asked)


def figures(samples: list[Sample], seconds: float) -> dict[str, Any]:
    """Throughput and quantiles of the requests that ended well."""
    good = [each for each in samples if each.status == 200]
    ends = max((each.due + each.latency for each in good), default=seconds)
    result: dict[str, Any] = {
        "requests": len(samples),
        "failed": len(samples) - len(good),
        "per_second": len(good) / max(ends, seconds),
        "seconds": seconds,
    }
    kinds = sorted({each.kind for each in good})
    for name in ["all", *(kinds if len(kinds) > 1 else [])]:
        of = [each for each in good if name in ("all", each.kind)]
        result[name] = {
            "count": len(of),
            "latency": quantiles([each.latency for each in of]),
            "first": quantiles([each.first for each in of if each.first is not None]),
        }
    return result


def quantiles(values: list[float]) -> dict[str, float] | None:
    if not values:
        return None
    ordered = sorted(values)
    return {f"p{q}": ordered[min(len(ordered) - 1, len(ordered) * q // 100)] for q in (50, 95, 99)}


def cpu_seconds(pid: int) -> float:
    """What a process has used of processors."""
    times = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(times[11]) + int(times[12])) / os.sysconf("SC_CLK_TCK")


def rss(pid: int) -> int:
    """Bytes that a process holds in memory."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def kinds_as_facts(kinds: list[Kind]) -> list[dict[str, Any]]:
    return [asdict(kind) for kind in kinds]
