"""Steps of the runs that people make, N = 1024 and more, each kind by itself.

A run of paper size takes hours on a CPU. These are samples of its steps with how often each kind
occurs; the report adds them up.
"""

import functools
import itertools

import pytest

from bench.flops import matrix_flops
from bench.long_runs import ENERGY, PLAIN, engine_kinds, plan_of, released_kinds, states
from bench.models import SIZES, engine_of, models
from edlm_engine import GenerationConfig

N = 1024  # the run that steps are taken from
COUNTED = (8, N, 4096)  # the runs that are added up
# (batch, K, window): the rows of the performance budget, and how many steps of each kind to time.
SETTINGS = {(1, 2, 1.0): 4, (4, 2, 0.2): 2}
ENGINE, RELEASED = "edlm_engine", "released algorithm"
CASES = [
    (*setting, who, kind)
    for setting in SETTINGS
    for who, kinds in ((ENGINE, (ENERGY, PLAIN)), (RELEASED, (ENERGY, PLAIN, "cached step")))
    for kind in kinds
    if not (kind == PLAIN and setting[2] == 1.0)  # every step that runs uses the energy
]


@pytest.mark.parametrize(("batch", "candidates", "window", "who", "kind"), CASES)
def bench_step(measure, benchmark, device, dtype, batch, candidates, window, who, kind):
    engine, made = engine_of("paper", dtype, device), models(SIZES["paper"], dtype, device)
    plans, kinds = {}, {}
    for steps in COUNTED:
        config = GenerationConfig(steps=steps, num_candidates=candidates, window=window)
        plan = plans[steps] = plan_of(engine, batch, config)
        if who == ENGINE:
            kinds[steps] = engine_kinds(engine, plan, config)[kind]
        else:
            options = {"num_candidates": candidates, "window": window}
            kinds[steps] = released_kinds(made.denoiser, made.ar, plan, steps, **options)[kind]
    step = kinds[N].step
    sample = states(kinds[N], plans[N], engine, SETTINGS[batch, candidates, window])
    flops = [
        matrix_flops(engine, functools.partial(step, *state)) for state in sample if who == ENGINE
    ]
    left = itertools.cycle(sample)
    measure(
        step,
        f"{who}, {kind}",
        group=f"steps of paper size, {dtype}, batch {batch}, K={candidates}, window {window}",
        rounds=len(sample),
        warmup=0,
        setup=lambda: (next(left), {}),
    )
    benchmark.extra_info |= {
        "who": who,
        "kind": kind,
        "counts": {steps: of_run.count for steps, of_run in kinds.items()},
        "flops": sum(flops) / len(flops) if flops else None,
        "dtype": str(dtype),
    }
