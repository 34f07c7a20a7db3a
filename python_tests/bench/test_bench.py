"""The latency report and what it rests on: counted work, sampled steps, words about growth."""

import json
from functools import partial
from pathlib import Path

import pytest
import torch

from bench.bench_long_runs import COUNTED, ENGINE, RELEASED
from bench.flops import counting_matrix_flops, matrix_flops
from bench.long_runs import (
    CACHED,
    ENERGY,
    PLAIN,
    engine_kinds,
    plan_of,
    released_kinds,
    states,
)
from bench.models import Size, engine_on, models
from bench.phases import PhaseMeter
from bench.report import write_report
from bench.report.generations import totals
from bench.report.page import matrix_rates
from bench.report.scaling import exponent, sentence
from edlm_engine import GenerationConfig
from edlm_engine.sampling.canvas import sequence_seeds
from edlm_engine.sampling.steps import steps_of

CPU = torch.device("cpu")
SIZE = Size(hidden_dim=32, blocks=2, heads=2, length=24, vocab=50)
D, L, V = SIZE.hidden_dim, SIZE.length, SIZE.vocab
# Per block and token: qkv, attention's output and the two of the MLP.
BLOCKS = SIZE.blocks * 2 * D * D * (3 + 1 + 8)
ATTENTION = SIZE.blocks * 4 * L * D


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_matrix_flops_against_a_count_by_hand(dtype):
    engine = engine_on(SIZE, dtype, CPU)
    xt, sigma = torch.full((3, L), V - 1), torch.zeros(3)
    with torch.inference_mode():
        denoiser = matrix_flops(engine, lambda: engine.denoiser.hidden(xt, sigma))
        logits = matrix_flops(engine, lambda: engine.denoiser.logits(xt, sigma))
        ar = matrix_flops(engine, lambda: engine.energy.model.hidden(xt))
    assert denoiser == 3 * L * (BLOCKS + ATTENTION)
    assert logits == denoiser + 3 * L * 2 * D * V
    assert ar == 3 * L * (BLOCKS + ATTENTION // 2)  # causal


def test_matrix_flops_by_phase():
    engine = engine_on(SIZE, torch.float32, CPU)
    config = GenerationConfig(steps=3, num_candidates=4)
    with counting_matrix_flops() as read, PhaseMeter(engine, read) as flops:
        out = engine.generate(config=config)
    plan = plan_of(engine, 1, config)
    drawn = sum(len(step.draws) for (step,) in steps_of(plan, sequence_seeds(0, 1)))
    nfe = int(out.nfe)
    assert flops["denoiser"] == nfe * L * (BLOCKS + ATTENTION)
    assert flops["head + draw"] == drawn * 2 * D * V
    # A long known prefix is scored once, so candidates cost this or less.
    whole = nfe * 4 * L * (BLOCKS + ATTENTION // 2 + 2 * D * V)
    assert 0.3 * whole < flops["energy"] <= whole
    assert flops["everything else"] == flops["plan"] == flops["resample"] == 0
    assert engine.generate(config=config).sequences.shape == (1, L)  # nothing stays patched


def test_phases_add_up_to_the_time():
    engine = engine_on(SIZE, torch.float32, CPU)
    ticks = iter(range(10**6))
    with PhaseMeter(engine, read=lambda: next(ticks)) as gained:
        engine.generate(config=GenerationConfig(steps=3, num_candidates=4))
    assert sum(gained.values()) == next(ticks) - 1
    assert gained["denoiser"] == gained["energy"] == gained["resample"] > 0


def sampled_kinds(engine, plan, config, size):
    """(kind, its sampled states, their matrix work) of each kind of a run's iterations."""
    for kind in engine_kinds(engine, plan, config).values():
        sample = states(kind, plan, engine, size)
        yield kind, sample, [matrix_flops(engine, partial(kind.step, *state)) for state in sample]


def test_all_steps_of_a_run_add_up_to_its_work():
    """Over every step rather than a sample, the sum is the matrix work of the whole run."""
    engine = engine_on(SIZE, torch.float32, CPU)
    config = GenerationConfig(steps=30, num_candidates=3, window=0.4)
    plan = plan_of(engine, 1, config)
    total = 0
    for kind, sample, works in sampled_kinds(engine, plan, config, size=10**6):
        assert len(sample) == kind.count > 0
        for j, xt in sample:
            assert ((xt == V - 1).numpy() == (plan.revealed_in >= plan.numbers[:, j, None])).all()
        total += sum(works)
    assert total == matrix_flops(engine, lambda: engine.generate(config=config))


def test_a_sample_of_steps_adds_up_to_nearly_the_work_of_a_batch():
    engine = engine_on(SIZE, torch.float32, CPU)
    config = GenerationConfig(steps=60, num_candidates=3, window=0.4)
    sampled = sampled_kinds(engine, plan_of(engine, 4, config), config, size=4)
    total = sum(kind.count * sum(works) / len(works) for kind, _, works in sampled)
    whole = matrix_flops(engine, lambda: engine.generate(4, config=config))
    assert total == pytest.approx(whole, rel=0.05)


def test_released_steps_are_those_of_a_released_run(monkeypatch):
    """Counted from what a run revealed, against the calls that it made."""
    from bench import baselines

    engine, made = engine_on(SIZE, torch.float32, CPU), models(SIZE, torch.float32, CPU)
    config = GenerationConfig(steps=40, num_candidates=2, window=0.5)
    plan = plan_of(engine, 2, config)
    calls = []
    for name, model in (("model", made.denoiser), ("ar", made.ar)):

        def logits(*args, name=name, function=model.logits):
            calls.append(name)
            return function(*args)

        monkeypatch.setattr(model, "logits", logits)
    xt = torch.full((2, L), V - 1)
    run = baselines.ReleasedRun(made.denoiser, made.ar, xt, num_candidates=2, window=0.5)
    revealed_in = torch.full((2, L), 41)
    times = plan.schedule.times(40).tolist()
    torch.manual_seed(0)
    made_in = {}
    for i in range(1, 41):
        before = run.xt
        calls.clear()
        run.step(times[i - 1], times[i])
        revealed_in[run.xt != before] = i
        made_in[i] = tuple(calls)
    plan.revealed_in[:] = revealed_in.numpy()
    kinds = released_kinds(made.denoiser, made.ar, plan, 40, num_candidates=2, window=0.5)
    for name, wanted in ((ENERGY, ("model", "ar")), (PLAIN, ("model",)), (CACHED, ())):
        assert list(kinds[name].members) == [i for i, made in made_in.items() if made == wanted]
        assert kinds[name].count == len(kinds[name].members) > 0
        calls.clear()
        kinds[name].step(*states(kinds[name], plan, engine, size=1)[0])
        assert tuple(calls) == wanted


def benchmark(group, name, seconds, *, rounds=1, deviation=0.0, rows=1, **info):
    stats = {"median": seconds, "mean": seconds, "min": seconds, "stddev": deviation, "iqr": 0.0}
    return {
        "group": group,
        "extra_info": {"name": name, "rows": rows, **info},
        "stats": stats | {"rounds": rounds},
    }


def step(who, kind, seconds, count, flops=None):
    return benchmark(
        "steps of paper size, torch.float32, batch 4, K=2, window 0.2",
        f"{who}, {kind}",
        seconds,
        rounds=4,
        deviation=seconds / 10,
        who=who,
        kind=kind,
        counts={"8": count / 10, "1024": count},
        flops=flops,
    )


def growth(axis, points, **info):
    return [
        benchmark(
            f"scaling with {axis}",
            f"{axis}={x}",
            y,
            **({"axis": axis, "value": x, "nfe": 8.0, "energy_evaluations": 16.0} | info),
        )
        for x, y in points
    ]


FP32 = {"dtype": "torch.float32"}
PAGE = [
    benchmark("limits", "read", 0.1, bytes=10**9),
    benchmark("limits", "product 4 x 4 x 4 torch.float32", 2.0, flops=10**9, **FP32),
    benchmark("limits", "product 8 x 8 x 8 torch.float32", 1.0, flops=10**9, **FP32),
    step(ENGINE, ENERGY, 10.0, 100, 8 * 10**9),
    step(ENGINE, PLAIN, 2.0, 500, 10**9),
    step(RELEASED, ENERGY, 40.0, 100),
    step(RELEASED, PLAIN, 20.0, 800),
    step(RELEASED, CACHED, 1.0, 124),
    benchmark(
        "paper size, torch.float32, 8 steps, batch 4, K=2, window 0.2",
        ENGINE,
        210.0,
        flops=105 * 10**9,
        **FP32,
    ),
    benchmark(
        "paper size, torch.float32, 8 steps, batch 4, K=2, window 0.2", RELEASED, 2000.0, **FP32
    ),
    benchmark(
        "phases: paper, torch.float32, 4 steps, batch 1",
        "K=2",
        10.0,
        size="paper",
        nfe=4.0,
        ess=1.5,
        peak_bytes=2**20,
        phases={"denoiser": 4.0, "head + draw": 2.0, "energy": 4.0},
        phase_flops={"denoiser": 3 * 10**9, "head + draw": 10**9, "energy": 3 * 10**9},
        **FP32,
    ),
    *growth("length of a small model", [(8, 1.0), (16, 2.0), (32, 7.0), (64, 27.0)]),
    *growth("batch", [(1, 1.0), (2, 2.0), (4, 4.0), (8, 8.0)]),
    benchmark("head, paper", "product alone", 2.0, flops=10**9, **FP32),
]
MACHINE = {"threads": 2, "cpu_isa": "avx2", "torch": "2", "python_version": "3", "platform": "x"}


@pytest.fixture(scope="module")
def page(tmp_path_factory) -> str:
    folder = tmp_path_factory.mktemp("report")
    content = {
        "machine_info": MACHINE | {"cpu": {"brand_raw": "Test"}, "dtype": "torch.float32"},
        "commit_info": {"id": "0123456789abcdef", "dirty": False},
        "datetime": "2026-01-02T03:04:05",
        "benchmarks": PAGE,
    }
    results = folder / "results.json"
    results.write_text(json.dumps(content))
    return write_report([results], folder / "page").read_text()


def test_report_sums_sampled_steps(page):
    sampled = [b for b in PAGE if b["group"].startswith("steps")]
    sums = totals(sampled, "1024")
    assert sums[ENGINE].seconds == 10 * 100 + 2 * 500
    assert sums[RELEASED].seconds == 40 * 100 + 20 * 800 + 124
    assert sums[ENGINE].flops == (8 * 100 + 500) * 10**9
    assert sums[ENGINE].error == pytest.approx((100**2 + 100**2) ** 0.5 / 2)
    row = "| torch.float32, 1024 steps, batch 4, K=2, window 0.2 | sum, ± 5% | 10.06 x | 65% |"
    assert row + " 15.48 x |" in page
    assert "the same sums give 0.95 x the time measured for edlm_engine and 1.01 x" in page


def test_report_against_the_limit(page):
    assert matrix_rates({"limits": PAGE[:3]})["torch.float32"][0] == 10**9
    assert "1 GFLOP/s (product 8 x 8 x 8)" in page and "read bandwidth: 10 GB/s" in page
    assert "At paper size, K=2: denoiser 75%, head + draw 50%, energy 75% of this" in page
    assert "8 steps, batch 4, K=2, window 0.2 | timed | 9.52 x | 50% | 19.05 x |" in page
    assert "| product alone | 1.00 x | one run | 50% |" in page


def test_report_says_how_work_grows(page):
    assert "exponent 1.00, linear" in page and "NFE per sequence stays between 8.0 and 8.0" in page
    assert "Attention is quadratic" in page and "| small random model |" in page
    assert exponent([1, 2, 4], [3, 12, 48]) == pytest.approx(2)
    flat = growth("vocabulary", [(4, 1.0), (8, 1.0), (16, 2.0), (32, 4.0)])
    assert "time is flat" in sentence("vocabulary", flat)
    assert "time is flat" not in sentence("vocabulary", flat[:3][::-1])


def test_report_reads_runs_of_older_versions(tmp_path):
    folder = Path(__file__).parents[2] / "bench" / "results" / "cpu-avx512"
    text = write_report(sorted(folder.glob("*.json")), tmp_path / "page").read_text()
    assert "2.29 x" in text and "Of this machine's matrix rate" not in text
    assert (tmp_path / "page" / "phases.png").is_file()


def test_long_runs_count_the_steps_that_are_also_timed_whole():
    from bench.bench_generation import STEPS

    assert STEPS in COUNTED
