"""Times the CUDA ops against the copy bandwidth of the same run, and against other ways.

Method: a CUDA graph of calls over buffers that together exceed the L2 cache several times, so that
every call finds its input cold; the median of replays, timed with events, over the number of calls.
GB/s counts one read of the logits and the outputs. Usage: python -m bench.gpu_ops [--seconds N].
"""

import argparse
import itertools
import json
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import datetime, timezone
from pathlib import Path

import torch

from bench import baselines
from edlm_engine import ops

ROOT = Path(__file__).resolve().parent.parent
VOCABS = (50258, 152064, 4096, 28)
ROWS = (1024, 8192, 64, 1)
CANDIDATES = (8, 1, 2, 4, 16)
DTYPES = (torch.bfloat16, torch.float32)
REPLAYS = 15
MAX_CALLS = 64
MEMORY_SHARE = 0.4
"""Of the device's memory that inputs may take; a larger shape is left out and said to be."""


def timed(call: Callable[[int], object], calls: int) -> tuple[float, str]:
    """Median seconds of call(i), i in 0..calls - 1, and whether a graph or eager code ran."""
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for i in range(min(3, calls)):
            call(i)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            kept = [call(i) for i in range(calls)]
        run, how = graph.replay, "graph"
    except RuntimeError:
        torch.cuda.synchronize()
        kept = None

        def run():
            for i in range(calls):
                call(i)

        how = "eager"
    seconds = []
    for _ in range(REPLAYS + 1):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        seconds.append(begin.elapsed_time(end) / 1000 / calls)
    del kept, graph
    return statistics.median(seconds[1:]), how


def copy_bandwidth() -> float:
    """Bytes per second, read and written, of a device-to-device copy of 2 GiB."""
    source = torch.empty(1 << 31, dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    seconds, _ = timed(lambda _: target.copy_(source), 1)
    return 2 * source.numel() / seconds


def inputs(rows: int, vocab: int, dtype: torch.dtype) -> list[torch.Tensor]:
    properties = torch.cuda.get_device_properties(0)
    size = rows * vocab * dtype.itemsize
    cold = 4 * getattr(properties, "L2_cache_size", 64 << 20)
    count = min(MAX_CALLS, max(2, -(-cold // size)))
    if count * size > MEMORY_SHARE * properties.total_memory:
        return []
    first = torch.randn(rows, vocab, device="cuda").mul_(3).to(dtype)
    return [first, *(first.clone() for _ in range(count - 1))]


def op_calls(rows: int, vocab: int) -> list[tuple[str, int | None, Callable]]:
    """(op, K, call(logits)) of everything that is timed on one shape."""
    keys = ops.stream_keys(1, torch.arange(rows, device="cuda"))
    targets = torch.arange(rows, device="cuda") % vocab

    def score(logits):
        return ops.token_log_probs(logits, targets, forbidden_id=0)

    def draw(k):
        return lambda logits: ops.sample_candidates(logits, keys, k, forbidden_id=0)

    return [
        ("token_log_probs", None, score),
        *(("sample_candidates", k, draw(k)) for k in CANDIDATES),
    ]


def described(rows: int, vocab: int, dtype: torch.dtype, candidates: int | None) -> dict:
    name = str(dtype).removeprefix("torch.")
    return {"dtype": name, "rows": rows, "vocab": vocab, "candidates": candidates}


def measured(call: Callable, logits: list[torch.Tensor]) -> dict:
    seconds, how = timed(lambda i: call(logits[i]), len(logits))
    return {"microseconds": seconds * 1e6, "timed_as": how}


def op_results(copy: float, deadline: float) -> tuple[list[dict], list[str]]:
    """One entry per op, shape and K; and what was left out, and why."""
    results, left_out = [], []
    for vocab, rows, dtype in itertools.product(VOCABS, ROWS, DTYPES):
        shape = f"{dtype} [{rows}, {vocab}]"
        if time.monotonic() > deadline:
            left_out.append(f"{shape}: no time left")
            continue
        logits = inputs(rows, vocab, dtype)
        if not logits:
            left_out.append(f"{shape}: larger than its share of the memory")
            continue
        for op, k, call in op_calls(rows, vocab):
            result = {"op": op, **described(rows, vocab, dtype, k), **measured(call, logits)}
            moved = rows * (vocab * dtype.itemsize + 8 + (12 * k if k else 4))
            rate = moved / result["microseconds"] * 1e6
            result["gigabytes_per_second"] = rate / 1e9
            result["percent_of_copy"] = 100 * rate / copy
            results.append(result)
    return results, left_out


def flashinfer_ways() -> dict[str, Callable]:
    """FlashInfer's two routes to K draws, where it is installed. Both want fp32."""
    try:
        from flashinfer import sampling
    except ImportError:
        return {}

    def rows_repeated(logits: torch.Tensor, k: int) -> torch.Tensor:
        rows = torch.arange(logits.shape[0], device=logits.device, dtype=torch.int32)
        return rows.repeat_interleave(k)

    return {
        "flashinfer softmax + sampling_from_probs": lambda logits, k: sampling.sampling_from_probs(
            sampling.softmax(logits.float()), indices=rows_repeated(logits, k)
        ),
        "flashinfer sampling_from_logits": lambda logits, k: sampling.sampling_from_logits(
            logits.float(), indices=rows_repeated(logits, k)
        ),
    }


def baseline_results(deadline: float) -> list[dict]:
    """Other ways to the same draws and scores, at 1024 rows of 50258."""
    compiled = torch.compile(baselines.released_candidates, dynamic=False)
    ways = {
        "softmax + multinomial": lambda logits, k: baselines.softmax_multinomial(logits, k, 0),
        "released sampler": lambda logits, k: baselines.released_candidates(logits, k, 0),
        "released sampler, torch.compile": lambda logits, k: compiled(logits, k, 0),
        **flashinfer_ways(),
    }
    targets = torch.arange(1024, device="cuda")

    def score(logits, _):
        return baselines.log_softmax_gather(logits, targets)

    results = []
    for dtype in DTYPES:
        logits = inputs(1024, 50258, dtype)[:4]
        cases = [
            ("log_softmax + gather", None, lambda x, _: baselines.log_softmax_gather(x, targets))
        ]
        cases += [(name, k, way) for k in (1, 8) for name, way in ways.items()]
        for name, k, way in cases:
            if time.monotonic() > deadline:
                return results
            result = {"way": name, **described(1024, 50258, dtype, k)}
            results.append(result | measured(lambda x, f=way, k=k: f(x, k), logits))
    return results


def said(command: list[str]) -> str:
    try:
        return subprocess.run(command, capture_output=True, text=True, cwd=ROOT).stdout.strip()
    except FileNotFoundError:
        return ""


def machine() -> dict:
    return {
        "gpu": torch.cuda.get_device_name(),
        "driver": said(["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]),
        "cuda": torch.version.cuda,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": said(["git", "rev-parse", "HEAD"]) or "unknown",
        "date": datetime.now(timezone.utc).strftime("%Y-%m-%d"),
        "flashinfer": "installed" if flashinfer_ways() else "not installed",
    }


def table(report: dict) -> str:
    """The page of docs/: the shapes of the budget in full, the rest in the JSON beside it."""
    facts = report["machine"]
    lines = [
        "# CUDA results",
        "",
        "Generated by `make gpu`; do not edit.",
        "",
        f"{facts['gpu']}, driver {facts['driver']}, CUDA {facts['cuda']}, torch {facts['torch']}, "
        f"commit {facts['commit'][:12]}, {facts['date']}. "
        f"Copy bandwidth {report['copy_gigabytes_per_second']:.0f} GB/s.",
        "",
        "| op | dtype | rows | V | K | median us | GB/s | % of copy |",
        "|---|---|---:|---:|---:|---:|---:|---:|",
    ]
    for r in report["ops"]:
        if r["vocab"] == 50258 and r["candidates"] in (None, 1, 8, 16):
            shape = f"{r['dtype']} | {r['rows']} | {r['vocab']} | {r['candidates'] or ''}"
            lines.append(
                f"| {r['op']} | {shape} "
                f"| {r['microseconds']:.1f} | {r['gigabytes_per_second']:.0f} "
                f"| {r['percent_of_copy']:.0f} |"
            )
    lines += ["", "| other way, 1024 rows, V = 50258 | dtype | K | median us | ours |"]
    lines += ["|---|---|---:|---:|---:|"]
    ours = {
        (r["dtype"], r["candidates"]): r["microseconds"]
        for r in report["ops"]
        if (r["rows"], r["vocab"]) == (1024, 50258)
    }
    for r in report["baselines"]:
        ratio = r["microseconds"] / ours[r["dtype"], r["candidates"]]
        lines.append(
            f"| {r['way']} | {r['dtype']} | {r['candidates'] or ''} | {r['microseconds']:.0f} "
            f"| {ratio:.1f} x faster |"
        )
    return "\n".join([*lines, ""])


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(path.suffix + ".tmp")
    temporary.write_text(text)
    temporary.replace(path)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=140.0, help="stop measuring after")
    seconds = parser.parse_args().seconds
    if not torch.cuda.is_available():
        print("no CUDA device")
        return 1
    torch.manual_seed(0)
    start = time.monotonic()
    copy = copy_bandwidth()
    report = {"machine": machine(), "copy_gigabytes_per_second": copy / 1e9}
    report["ops"], report["left_out"] = op_results(copy, start + 0.6 * seconds)
    report["baselines"] = baseline_results(start + seconds)
    report["seconds"] = time.monotonic() - start
    slug = "".join(c if c.isalnum() else "_" for c in report["machine"]["gpu"].lower())
    write(ROOT / "bench" / "results" / f"gpu_{slug}.json", json.dumps(report, indent=1) + "\n")
    write(ROOT / "docs" / "gpu_results.md", table(report))
    print(f"{len(report['ops'])} timings, {len(report['left_out'])} shapes left out")
    return 0


if __name__ == "__main__":
    sys.exit(main())
