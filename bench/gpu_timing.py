"""Times a call on a GPU, and keeps what was measured in a file as it comes.

Method: a CUDA graph of at least 20 calls over buffers that together exceed the L2 cache several
times, so that every call finds its input cold and no launch by the host falls between the events;
the median of replays over the number of calls.
"""

import json
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
REPLAYS = 15
LEAST_CALLS, MOST_BUFFERS = 20, 64
MEMORY_SHARE = 0.4
"""Of the device's memory that inputs may take; a larger shape is left out and said to be."""


def calls_over(buffers: int) -> int:
    """How many calls make a graph: whole rounds over the buffers, LEAST_CALLS or more."""
    return buffers * -(-LEAST_CALLS // buffers)


def timed(call: Callable[[int], object], buffers: int) -> dict:
    """Median microseconds of call(i), i going round 0..buffers - 1, and whether a graph ran."""
    calls = calls_over(buffers)
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for i in range(min(3, buffers)):
            call(i)
    torch.cuda.synchronize()
    graph, how = torch.cuda.CUDAGraph(), "graph"
    try:
        with torch.cuda.graph(graph):
            for i in range(calls):
                call(i % buffers)
        run = graph.replay
    except RuntimeError:
        torch.cuda.synchronize()
        how = "eager"

        def run():
            for i in range(calls):
                call(i % buffers)

    seconds = []
    for _ in range(REPLAYS + 1):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1000 / calls)
    return {"microseconds": statistics.median(seconds[1:]) * 1e6, "timed_as": how}


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of a device-to-device copy of 2 GiB."""
    source = torch.empty(1 << 31, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    return 2 * source.numel() / timed(lambda _: target.copy_(source), 1)["microseconds"] * 1e6


def buffers_of(rows: int, vocab: int, dtype: torch.dtype) -> list[torch.Tensor]:
    """Logits enough to find the cache cold at every call; none where they would not fit."""
    properties = torch.cuda.get_device_properties(0)
    size = rows * vocab * dtype.itemsize
    cold = 4 * getattr(properties, "L2_cache_size", 64 << 20)
    count = min(MOST_BUFFERS, max(2, -(-cold // size)))
    if count * size > MEMORY_SHARE * properties.total_memory:
        return []
    first = torch.randn(rows, vocab, device="cuda").mul_(3).to(dtype)
    return [first, *(first.clone() for _ in range(count - 1))]


def said(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.strip()
    except FileNotFoundError:
        return ""


def installed(*packages: str) -> dict[str, str]:
    from importlib import metadata

    versions = {}
    for package in packages:
        try:
            versions[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            versions[package] = "not installed"
    return versions


def machine() -> dict:
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": said(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": said(["git", "rev-parse", "HEAD"]) or "unknown",
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        **installed("flashinfer-python", "quack-kernels"),
    }


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


class Results:
    """The results of one group, written whenever one is added: what comes later may fail."""

    def __init__(self, path: Path, facts: dict, seconds: float):
        self.path = path
        self.report = facts | {"results": [], "left_out": []}
        self.deadline = time.monotonic() + seconds

    def add(self, result: dict) -> None:
        self.report["results"].append(result)
        self.save()

    def leave_out(self, what: str, why: str) -> None:
        self.report["left_out"].append(f"{what}: {why}")
        self.save()

    @contextmanager
    def attempt(self, what: str) -> Iterator[bool]:
        """Yields whether there is time; what fails inside is left out, and the rest goes on."""
        if time.monotonic() > self.deadline:
            self.leave_out(what, "no time left")
            yield False
            return
        try:
            yield True
        except Exception as failure:
            self.leave_out(what, f"{type(failure).__name__}: {str(failure)[:200]}")
            torch.cuda.empty_cache()

    def save(self) -> None:
        write(self.path, json.dumps(self.report, indent=1) + "\n")
