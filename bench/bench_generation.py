"""Whole generations: by phase, against other ways to sample, and as work grows."""

import functools
import math

import pytest

from bench import baselines
from bench.flops import counting_matrix_flops, matrix_flops
from bench.long_runs import PLAIN as PLAIN_STEP
from bench.long_runs import plan_of, released_kinds
from bench.models import SIZES, Size, engine_of, engine_on, models
from bench.phases import PhaseMeter, peak_memory
from edlm_engine import Engine, GenerationConfig

PAPER = SIZES["paper"]
# Steps of the whole runs of paper size; what N = 1024 costs is in bench_long_runs.py.
STEPS = 8


def facts_of(out) -> dict:
    """What a report says of a generation."""
    ess = out.ess[~out.ess.isnan()]
    return {
        "nfe": out.nfe.float().mean().item(),
        "nfe_max": out.nfe.max().item(),
        "energy_evaluations": out.energy_evaluations.float().mean().item(),
        "ess": ess.mean().item() if len(ess) else None,
    }


def generation(engine: Engine, batch: int = 1, **options) -> functools.partial:
    return functools.partial(engine.generate, batch, config=GenerationConfig(**options), seed=0)


# (size, steps): enough steps that each does typical work, few enough to finish.
PHASE_SIZES = {"bundled": 32, "text8": 4, "paper": 4}
PHASE_CASES = [
    (size, candidates)
    for size in PHASE_SIZES
    for candidates in ((1, 2, 4) if size == "paper" else (1, 2, 8))
]


@pytest.mark.parametrize(("size", "candidates"), PHASE_CASES)
def bench_phases(measure, benchmark, device, dtype, size, candidates):
    engine, steps = engine_of(size, dtype, device), PHASE_SIZES[size]
    generate = generation(engine, steps=steps, num_candidates=candidates)
    meter = PhaseMeter(engine)

    def metered():
        with meter:
            return generate()

    quick = size == "bundled"
    with peak_memory(device) as peak:
        out = measure(
            metered,
            f"K={candidates}",
            group=f"phases: {size}, {dtype}, {steps} steps, batch 1",
            rounds=3 if quick else 1,
            warmup=1 if quick else 0,
        )
    with counting_matrix_flops() as read, PhaseMeter(engine, read) as flops:
        generate()
    benchmark.extra_info |= facts_of(out) | {
        "size": size,
        "dtype": str(dtype),
        "phases": dict(meter.gained),  # of the last round
        "phase_flops": dict(flops),
        "peak_bytes": peak[0],
    }


@pytest.mark.parametrize("who", ["edlm_engine", "released algorithm"])
def bench_against_released(measure, benchmark, device, dtype, who):
    """Paper size (12 x 768, L = 1024, V = 50258), equal steps, K, window and dtype."""
    options = {"num_candidates": 2, "window": 1.0}
    engine = engine_of("paper", dtype, device)
    generate = generation(engine, steps=STEPS, **options)
    made = models(PAPER, dtype, device)
    released = functools.partial(
        baselines.released_edlm,
        *(made.denoiser, made.ar),
        batch_size=1,
        length=PAPER.length,
        steps=STEPS,
        **options,
    )
    group = f"paper size, {dtype}, {STEPS} steps, batch 1, K=2, window 1.0"
    measure(released if "released" in who else generate, who, group=group, rounds=1, warmup=0)
    if who == "edlm_engine":
        benchmark.extra_info |= {"dtype": str(dtype), "flops": matrix_flops(engine, generate)}


PLAIN = ("edlm_engine, plain MDLM", "released race, plain MDLM", "AR sampling with KV cache")


@pytest.mark.parametrize("who", PLAIN)
def bench_plain(measure, benchmark, device, dtype, who):
    """One sequence of 1024 tokens without an energy; AR sampling takes 1024 steps."""
    made = models(PAPER, dtype, device)
    engine = engine_of("paper", dtype, device)
    generate = generation(engine, steps=STEPS, num_candidates=1)
    released = functools.partial(
        baselines.released_edlm,
        *(made.denoiser, None),
        batch_size=1,
        length=PAPER.length,
        steps=STEPS,
    )
    ar = functools.partial(baselines.ar_sampling, PAPER, dtype, device, batch_size=1)
    group = f"paper size, {dtype}, {STEPS} steps, batch 1, plain sampling"
    function = dict(zip(PLAIN, (generate, released, ar), strict=True))[who]
    measure(function, who, group=group, rounds=1, warmup=0)
    if who == PLAIN[0]:
        benchmark.extra_info |= {"dtype": str(dtype), "flops": matrix_flops(engine, generate)}


SCALING = {
    "K": [{"num_candidates": k} for k in (1, 2, 4, 8, 16, 32, 64)],
    "batch": [{"batch": b} for b in (1, 2, 4, 8, 16, 32, 64)],
    "steps": [{"steps": n} for n in (16, 64, 256, 1024, 4096)],
    "length": [{"length": n} for n in (16, 32, 64, 128)],
    "window": [{"window": w, "steps": 32} for w in (0.0, 0.2, 0.5, 1.0)],
}


# From where on an axis one round has to do.
SLOW = {"K": 16, "batch": 8, "steps": 256}
LONG = 1024  # steps for which the plans of a batch are counted


@pytest.mark.parametrize(
    ("axis", "point"), [(axis, point) for axis, points in SCALING.items() for point in points]
)
def bench_scaling(measure, benchmark, device, dtype, axis, point):
    """The bundled model, 8 steps and K = 2 but for what grows."""
    options = {"steps": 8, "num_candidates": 2, "window": 1.0} | point
    value, engine = next(iter(point.values())), engine_of("bundled", dtype, device)
    slow = value >= SLOW.get(axis, math.inf)
    out = measure(
        generation(engine, **options),
        f"{axis}={value}",
        group=f"scaling with {axis}",
        rounds=1 if slow else 3,
        warmup=0 if slow else 1,
    )
    benchmark.extra_info |= {"axis": axis, "value": value} | facts_of(out)
    if axis == "batch":
        plan = plan_of(engine, value, GenerationConfig(steps=LONG))
        kinds = released_kinds(engine.denoiser, None, plan, LONG, num_candidates=1, window=0.0)
        benchmark.extra_info |= {
            "long_nfe": plan.nfe.mean().item(),
            "long_nfe_released": len(kinds[PLAIN_STEP].members),
        }


SIZES_UP = {
    "length of a small model": [(n, 4096) for n in (128, 256, 512, 1024, 2048, 4096)],
    "vocabulary of a small model": [(256, v) for v in (28, 1024, 4096, 16384, 65536, 262144)],
}


@pytest.mark.parametrize(
    ("axis", "length", "vocab"),
    [(axis, *size) for axis, sizes in SIZES_UP.items() for size in sizes],
)
def bench_size(measure, benchmark, device, dtype, axis, length, vocab):
    """Eight steps with K = 2 of two blocks of width 64 as the problem itself grows."""
    engine = engine_on(Size(64, 2, 2, length, vocab), dtype, device)
    value = length if axis.startswith("length") else vocab
    out = measure(
        generation(engine, steps=8, num_candidates=2),
        f"{axis.split()[0]}={value}",
        group=f"scaling with {axis}",
        rounds=3,
        warmup=1,
    )
    benchmark.extra_info |= {"axis": axis, "value": value} | facts_of(out)
