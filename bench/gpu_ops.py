"""Times ops, heads and generations on a GPU, in groups that each have their own result file.

`python -m bench.gpu_ops GROUP [--seconds N]` measures one group (see GROUPS), writes
`bench/results/gpu_NAME/GROUP.json` as results come, and then `docs/gpu_results.md` from the files
of all groups. GB/s counts one read of the logits and the outputs; percent of copy compares them
with the copy rate of the same run.
"""

import argparse
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

from bench import baselines, gpu_timing
from bench.gpu_timing import ROOT, Results, buffers_of, timed
from bench.phases import PhaseMeter, synchronize
from edlm_engine import ops

DEVICE = "cuda"
DTYPES = (torch.bfloat16, torch.float32)
CANDIDATES = (8, 16, 1, 2, 4)
PAPER_SHAPES = [(50258, rows) for rows in (1024, 64, 312, 8192, 1)]
BASELINE_SHAPE = (1024, 50258)
OTHER_SHAPES = [
    *((28, rows) for rows in (1024, 8192, 64)),
    *((152064, rows) for rows in (1024, 8192, 64, 1)),
    *((4096, rows) for rows in (1024, 8192, 64)),
]


def described(rows: int, vocab: int, dtype: torch.dtype, candidates: int | None) -> dict:
    name = str(dtype).removeprefix("torch.")
    return {"dtype": name, "rows": rows, "vocab": vocab, "candidates": candidates}


def op_calls(rows: int, vocab: int) -> list[tuple[str, int | None, Callable]]:
    """(op, K, call(logits)) of everything that is timed on one shape."""
    keys = ops.stream_keys(1, torch.arange(rows, device=DEVICE))
    targets = torch.arange(rows, device=DEVICE) % vocab

    def score(logits):
        return ops.token_log_probs(logits, targets, forbidden_id=0)

    def draw(k, **options):
        return lambda logits: ops.sample_candidates(logits, keys, k, forbidden_id=0, **options)

    return [
        *(("sample_candidates", k, draw(k)) for k in CANDIDATES[:2]),
        ("token_log_probs", None, score),
        *(("sample_candidates", k, draw(k)) for k in CANDIDATES[2:]),
        ("sample_candidates, statistics", 8, draw(8, statistics=True)),
        ("sample_candidates, top_p 0.9", 8, draw(8, top_p=0.9)),
        ("sample_candidates, top_k 50", 8, draw(8, top_k=50)),
    ]


def measure_shapes(shapes: list[tuple[int, int]], results: Results) -> None:
    copy = gpu_timing.copy_bandwidth()
    results.report["copy_gigabytes_per_second"] = copy / 1e9
    for (vocab, rows), dtype in itertools.product(shapes, DTYPES):
        shape = f"{dtype} [{rows}, {vocab}]"
        logits = buffers_of(rows, vocab, dtype)
        if not logits:
            results.leave_out(shape, "larger than its share of the memory")
            continue
        for op, k, call in op_calls(rows, vocab):
            with results.attempt(f"{op} K={k} {shape}") as there_is_time:
                if not there_is_time:
                    return
                result = {"op": op, **described(rows, vocab, dtype, k)}
                result |= timed(lambda i, c=call, x=logits: c(x[i]), len(logits))
                moved = rows * (vocab * dtype.itemsize + 8 + (12 * k if k else 4))
                rate = moved / result["microseconds"] * 1e6
                result["gigabytes_per_second"] = rate / 1e9
                result["percent_of_copy"] = 100 * rate / copy
                results.add(result)
        del logits


def flashinfer_ways() -> dict[str, Callable]:
    """FlashInfer's two routes to K draws. Both want fp32."""
    from flashinfer import sampling

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


def quack_score(targets: torch.Tensor) -> Callable:
    from quack.cross_entropy import cross_entropy

    return lambda logits, _: -cross_entropy(logits, targets, reduction="none")


def measure_baselines(results: Results) -> None:
    """Other ways to the same draws and scores, on one shape. Each may fail by itself."""
    rows, vocab = BASELINE_SHAPE
    targets = torch.arange(rows, device=DEVICE) % vocab
    scores = {"log_softmax + gather": lambda x, _: baselines.log_softmax_gather(x, targets)}
    draws = {
        "softmax + multinomial": lambda x, k: baselines.softmax_multinomial(x, k, 0),
        "released sampler": lambda x, k: baselines.released_candidates(x, k, 0),
    }
    with results.attempt("quack"):
        scores["quack cross_entropy"] = quack_score(targets)
    with results.attempt("flashinfer"):
        draws |= flashinfer_ways()
    compiled = torch.compile(baselines.released_candidates, dynamic=False)
    draws["released sampler, torch.compile"] = lambda x, k: compiled(x, k, 0)
    cases = [(name, None, way) for name, way in scores.items()]
    cases += [(name, k, way) for name, way in draws.items() for k in (8, 1)]
    for dtype in DTYPES:
        logits = buffers_of(rows, vocab, dtype)[:4]
        ours = {
            k: timed(lambda i, c=call, x=logits: c(x[i]), len(logits))["microseconds"]
            for op, k, call in op_calls(rows, vocab)
            if op in ("sample_candidates", "token_log_probs") and k in (None, 1, 8)
        }
        for name, k, way in cases:
            with results.attempt(f"{name} K={k} {dtype}") as there_is_time:
                if not there_is_time:
                    return
                result = {"way": name, **described(rows, vocab, dtype, k)}
                result |= timed(lambda i, w=way, k=k, x=logits: w(x[i], k), len(logits))
                results.add(result | {"ours_microseconds": ours[k]})


HEADS = {"paper": (1024, 768, 50258), "late step": (64, 768, 50258), "text8": (256, 784, 28)}


def measure_heads(results: Results) -> None:
    """The head_* ops against their matrix product alone, into a buffer made beforehand."""
    for dtype, (name, (rows, dim, vocab)) in itertools.product(DTYPES, HEADS.items()):
        weight = (torch.randn(vocab, dim, device=DEVICE) / dim**0.5).to(dtype)
        bias = torch.randn(vocab, device=DEVICE).to(dtype)
        hidden = [torch.randn(rows, dim, device=DEVICE).to(dtype) for _ in range(4)]
        keys = torch.arange(rows, device=DEVICE)
        out = torch.empty(rows, vocab, dtype=dtype, device=DEVICE)
        workspace = ops.head_workspace(vocab, rows, dtype, DEVICE)
        options = {"bias": bias, "forbidden_id": vocab - 1, "workspace": workspace}
        cases = {
            ("product alone", None): lambda h, b=bias, w=weight, o=out: torch.addmm(
                b, h, w.T, out=o
            ),
            ("head_token_log_probs", None): lambda h, w=weight, k=keys, o=options: (
                ops.head_token_log_probs(h, w, k % len(w), **o)
            ),
        }
        for k in (8, 16):
            cases["head_sample_candidates", k] = lambda h, w=weight, s=keys, o=options, k=k: (
                ops.head_sample_candidates(h, w, s, k, **o)
            )
        product = None
        for (case, k), call in cases.items():
            with results.attempt(f"{case} {name} {dtype}") as there_is_time:
                if not there_is_time:
                    return
                result = {"case": case, "size": name, "dim": dim}
                result |= described(rows, vocab, dtype, k)
                result |= timed(lambda i, c=call, h=hidden: c(h[i]), len(hidden))
                product = product or result["microseconds"]
                results.add(result | {"times_product": result["microseconds"] / product})


GENERATIONS = {"bundled": 32, "text8": 16, "paper": 8}
"""Steps of a whole generation of one sequence, K = 2, window 1."""


def seconds_of(run: Callable[[], object], rounds: int = 3) -> float:
    run()
    seconds = []
    for _ in range(rounds):
        synchronize(torch.device(DEVICE))
        start = time.perf_counter()
        run()
        synchronize(torch.device(DEVICE))
        seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def measure_generations(results: Results) -> None:
    """The engine against the released algorithm, and the share of its time that is not models."""
    from bench.models import SIZES, engine_of, models
    from edlm_engine import GenerationConfig

    device = torch.device(DEVICE)
    for (name, steps), dtype in itertools.product(GENERATIONS.items(), DTYPES):
        with results.attempt(f"generation {name} {dtype}") as there_is_time:
            if not there_is_time:
                return
            engine = engine_of(name, dtype, device)
            config = GenerationConfig(steps=steps, num_candidates=2, window=1.0)

            def generate(engine=engine, config=config):
                return engine.generate(1, config=config, seed=0)

            result = {"size": name, "steps": steps, "dtype": str(dtype).removeprefix("torch.")}
            result["milliseconds"] = seconds_of(generate) * 1e3
            with PhaseMeter(engine) as phases:
                generate()
            model = phases["denoiser"] + phases["energy"]
            result["share_not_models"] = 1 - model / sum(phases.values())
            result["phases_seconds"] = dict(phases)
            results.add(result)
        if name not in SIZES:
            continue
        with results.attempt(f"released generation {name} {dtype}") as there_is_time:
            if not there_is_time:
                return
            made, size = models(SIZES[name], dtype, device), SIZES[name]

            def released(made=made, size=size, steps=steps):
                return baselines.released_edlm(
                    *(made.denoiser, made.ar),
                    batch_size=1,
                    length=size.length,
                    steps=steps,
                    num_candidates=2,
                    window=1.0,
                )

            result["released_milliseconds"] = seconds_of(released, 1) * 1e3
            results.save()


GROUPS: dict[str, Callable[[Results], None]] = {
    "ops": lambda results: measure_shapes(PAPER_SHAPES, results),
    "heads": measure_heads,
    "generations": measure_generations,
    "baselines": measure_baselines,
    "shapes": lambda results: measure_shapes(OTHER_SHAPES, results),
}


def page(reports: dict[str, dict]) -> str:
    """The page of docs/, from the reports of the groups that have been measured."""
    lines = ["# CUDA results", "", "Generated by `make gpu`; do not edit."]

    def section(group: str, title: str, columns: list[str], rows: Callable[[dict], list]) -> None:
        report = reports.get(group)
        if report is None:
            return
        facts = report["machine"]
        lines.extend(["", f"## {title}", ""])
        lines.append(
            f"{facts['gpu']}, driver {facts['driver']}, CUDA {facts['cuda']}, torch "
            f"{facts['torch']}, commit {facts['commit'][:12]}, {facts['date']}."
        )
        if "copy_gigabytes_per_second" in report:
            lines.append(f"Copy rate {report['copy_gigabytes_per_second']:.0f} GB/s.")
        lines.extend(["", f"| {' | '.join(columns)} |", "|" + "---|" * len(columns)])
        lines.extend(f"| {' | '.join(map(str, rows(r)))} |" for r in report["results"])
        if report["left_out"]:
            lines.extend(["", "Left out: " + "; ".join(report["left_out"]) + "."])

    shape = ["dtype", "rows", "V", "K"]

    def shaped(r: dict) -> list:
        return [r["dtype"], r["rows"], r["vocab"], r["candidates"] or ""]

    for group, title in (("ops", "Ops"), ("shapes", "Ops, other vocabularies")):
        section(
            *(group, title, ["op", *shape, "median us", "GB/s", "% of copy"]),
            lambda r: [
                *(r["op"], *shaped(r), f"{r['microseconds']:.1f}"),
                *(f"{r['gigabytes_per_second']:.0f}", f"{r['percent_of_copy']:.0f}"),
            ],
        )
    section(
        *("heads", "Heads", ["", "size", *shape, "median us", "x the product"]),
        lambda r: [
            *(r["case"], r["size"], *shaped(r)),
            *(f"{r['microseconds']:.1f}", f"{r['times_product']:.2f}"),
        ],
    )
    section(
        *("generations", "Whole generations, one sequence, K = 2"),
        ["size", "steps", "dtype", "ms", "not models", "released algorithm"],
        lambda r: [
            *(r["size"], r["steps"], r["dtype"], f"{r['milliseconds']:.1f}"),
            f"{100 * r['share_not_models']:.0f} %",
            f"{r['released_milliseconds'] / r['milliseconds']:.1f} x the time"
            if "released_milliseconds" in r
            else "",
        ],
    )
    section(
        *("baselines", "Other ways to the same", ["way", *shape, "median us", "x ours"]),
        lambda r: [
            *(r["way"], *shaped(r), f"{r['microseconds']:.0f}"),
            f"{r['microseconds'] / r['ours_microseconds']:.1f}",
        ],
    )
    return "\n".join([*lines, ""])


def folder(gpu: str) -> Path:
    slug = "".join(c if c.isalnum() else "_" for c in gpu.lower())
    return ROOT / "bench" / "results" / f"gpu_{slug}"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("group", choices=GROUPS)
    parser.add_argument("--seconds", type=float, default=120.0, help="stop measuring after")
    arguments = parser.parse_args()
    if not torch.cuda.is_available():
        print("no CUDA device")
        return 1
    torch.manual_seed(0)
    facts = {"machine": gpu_timing.machine()}
    place = folder(facts["machine"]["gpu"])
    results = Results(place / f"{arguments.group}.json", facts, arguments.seconds)
    try:
        GROUPS[arguments.group](results)
    finally:
        files = {g: place / f"{g}.json" for g in GROUPS}
        reports = {g: json.loads(f.read_text()) for g, f in files.items() if f.exists()}
        gpu_timing.write(ROOT / "docs" / "gpu_results.md", page(reports))
    report = results.report
    print(f"{len(report['results'])} timings, {len(report['left_out'])} left out")
    return int(not report["results"])


if __name__ == "__main__":
    sys.exit(main())
