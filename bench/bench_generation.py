"""Whole generations: by phase, against other ways to sample, and as work grows."""

import functools

import pytest
import torch

from bench import baselines
from bench.models import Size, pair, random_pair
from bench.phases import PhaseTimer, peak_memory
from edlm_engine import ARResidualEnergy, Engine, GenerationConfig

BF16 = torch.bfloat16


@functools.cache
def engine_of(size: str) -> Engine:
    """All in bfloat16 like the released code; the default would keep the heads in float32."""
    denoiser, ar = pair(size, BF16)
    return Engine(denoiser, ARResidualEnergy(ar))


def run_engine(measure, size, group, name, *, batch=1, rounds=3, detail=True, **options):
    """Times one generation; with ``detail`` again by phase, and for its peak memory."""
    engine, config = engine_of(size), GenerationConfig(**options)
    generate = functools.partial(engine.generate, batch, config=config, seed=0)
    out = measure(generate, name, group=group, rounds=rounds, warmup=int(rounds > 1))
    ess = out.ess[~out.ess.isnan()]
    facts = {
        "size": size,
        "batch": batch,
        **options,
        "nfe": out.nfe.float().mean().item(),
        "energy_evaluations": out.energy_evaluations.float().mean().item(),
        "ess": ess.mean().item() if len(ess) else None,
    }
    if detail:
        with peak_memory() as peak, PhaseTimer(engine) as phases:
            generate()
        facts |= {"phases": dict(phases), "peak_bytes": peak[0]}
    return facts


# (size, steps): enough steps that each does typical work, few enough to finish.
PHASE_SIZES = {"bundled": 64, "text8": 8, "paper": 8}


@pytest.mark.parametrize("candidates", [1, 2, 8])
@pytest.mark.parametrize("size", PHASE_SIZES)
def bench_phases(measure, benchmark, size, candidates):
    steps = PHASE_SIZES[size]
    if size == "paper" and candidates == 8:
        candidates = 4
    benchmark.extra_info |= run_engine(
        measure,
        size,
        f"phases: {size}, {steps} steps, batch 1",
        f"K={candidates}",
        rounds=3 if size == "bundled" else 1,
        steps=steps,
        num_candidates=candidates,
    )


# The rows of the performance budget: batch, K, window.
RELEASED = [(1, 2, 1.0), (4, 2, 0.2)]


@pytest.mark.parametrize("who", ["edlm_engine", "released algorithm"])
@pytest.mark.parametrize(("batch", "candidates", "window"), RELEASED)
def bench_against_released(measure, benchmark, batch, candidates, window, who):
    """Paper size (12 x 768, L = 1024, V = 50258), equal steps, K, window and dtype."""
    options = {"steps": 16, "num_candidates": candidates, "window": window}
    group = f"paper size, 16 steps, batch {batch}, K={candidates}, window {window}"
    if who == "edlm_engine":
        benchmark.extra_info |= run_engine(
            measure, "paper", group, who, batch=batch, rounds=1, detail=False, **options
        )
        return
    run = functools.partial(
        baselines.released_edlm, *pair("paper", BF16), batch_size=batch, length=1024, **options
    )
    measure(run, who, group=group, rounds=1, warmup=0)


PLAIN = {
    "edlm_engine, plain MDLM": lambda: engine_of("paper").generate(
        config=GenerationConfig(steps=16, num_candidates=1)
    ),
    "released race, plain MDLM": lambda: baselines.released_edlm(
        *pair("paper", BF16), batch_size=1, length=1024, steps=16
    ),
    "AR sampling with KV cache": lambda: baselines.ar_sampling("paper", BF16, batch_size=1),
}


@pytest.mark.parametrize("who", PLAIN)
def bench_plain(measure, who):
    """One sequence of 1024 tokens without an energy; AR sampling takes 1024 steps."""
    measure(PLAIN[who], who, group="paper size, plain sampling, batch 1", rounds=1, warmup=0)


SCALING = {
    "K": [{"num_candidates": k} for k in (1, 2, 4, 8, 16, 32)],
    "batch": [{"batch": b} for b in (1, 2, 4, 8, 16, 32)],
    "steps": [{"steps": n} for n in (16, 64, 256, 1024, 4096)],
    "length": [{"length": n} for n in (16, 32, 64, 128)],
    "window": [{"window": w} for w in (0.0, 0.2, 0.5, 1.0)],
}


@pytest.mark.parametrize(
    ("axis", "point"), [(axis, point) for axis, points in SCALING.items() for point in points]
)
def bench_scaling(measure, benchmark, axis, point):
    """The bundled model as one thing grows."""
    options = {"steps": 32, "num_candidates": 4, "window": 1.0} | point
    benchmark.extra_info |= {"axis": axis, "value": next(iter(point.values()))} | run_engine(
        measure,
        "bundled",
        f"scaling with {axis}",
        f"{axis}={next(iter(point.values()))}",
        rounds=1,
        detail=False,
        **options,
    )


@functools.cache
def small_engine(length: int, vocab: int) -> Engine:
    """Two blocks of width 64 with random weights: where the vocabulary and the length show."""
    denoiser, ar = random_pair(Size(64, 2, 2, length, vocab), BF16)
    return Engine(denoiser, ARResidualEnergy(ar))


SIZES_UP = {
    "length of a small model": [(n, 4096) for n in (128, 256, 512, 1024, 2048, 4096)],
    "vocabulary of a small model": [(256, v) for v in (28, 1024, 4096, 16384, 65536, 262144)],
}


@pytest.mark.parametrize(
    ("axis", "length", "vocab"),
    [(axis, *size) for axis, sizes in SIZES_UP.items() for size in sizes],
)
def bench_size(measure, benchmark, axis, length, vocab):
    """Eight steps with K = 2 as the problem itself grows."""
    engine = small_engine(length, vocab)
    config = GenerationConfig(steps=8, num_candidates=2)
    value = length if axis.startswith("length") else vocab
    out = measure(
        lambda: engine.generate(config=config),
        f"{axis.split()[0]}={value}",
        group=f"scaling with {axis}",
        rounds=3,
        warmup=1,
    )
    benchmark.extra_info |= {
        "axis": axis,
        "value": value,
        "nfe": out.nfe.float().mean().item(),
        "energy_evaluations": out.energy_evaluations.float().mean().item(),
    }
