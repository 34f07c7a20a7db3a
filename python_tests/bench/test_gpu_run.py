"""The runner of `make gpu`: its limit of time holds, and what it could not do it says."""

import json
import signal
import sys
import time

import pytest
import torch

from bench import gpu_run
from bench.gpu_run import Outcome, Step
from bench.gpu_timing import calls_over


def step(name: str, code: str, seconds: float = 30.0) -> Step:
    return Step(name, [sys.executable, "-c", code], seconds)


def test_verdicts_and_last_lines():
    steps = [
        step("build", "print('built')"),
        step("good", "print('first'); print('=== all well ===')"),
        step("bad", "print('reason'); raise SystemExit(3)"),
        Step("missing", ["no-such-program"], 30.0),
    ]
    outcomes = gpu_run.run_all(steps, 60.0)
    assert [o.verdict for o in outcomes] == ["passed", "passed", "FAILED", "FAILED"]
    assert [o.last_line for o in outcomes[:3]] == ["built", "all well", "reason"]
    lines = gpu_run.summary(outcomes).splitlines()
    assert len(lines) == 4 and lines[2].split()[:2] == ["bad", "FAILED"]


def test_a_failed_build_ends_the_run():
    outcomes = gpu_run.run_all([step("build", "raise SystemExit(1)"), step("next", "")], 60.0)
    assert [o.verdict for o in outcomes] == ["FAILED"]


@pytest.mark.parametrize("whole", [False, True], ids=["a step's share", "the whole"])
def test_nothing_runs_beyond_its_time(whole):
    # The sleeper is a child of the step, as a compiler is, and inherits its output.
    sleep = "print('began', flush=True); import subprocess; subprocess.run(['sleep', '60'])"
    steps = [step("slow", sleep, 60.0 if whole else 7.0), step("after", "print('ran')")]
    start = time.monotonic()
    outcomes = gpu_run.run_all(steps, 7.0 if whole else 60.0)
    assert time.monotonic() - start < 15
    assert outcomes[0].verdict == "TIMED OUT" and outcomes[0].last_line == "began"
    # A step that found no time left counts as a failure too: its verdict is not "passed".
    assert outcomes[1].verdict == ("NOT RUN" if whole else "passed")


def test_an_interrupt_ends_the_step_too(tmp_path):
    def interrupt(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    mark = tmp_path / "mark"
    code = f"import pathlib, time; time.sleep(4); pathlib.Path({str(mark)!r}).touch()"
    signal.setitimer(signal.ITIMER_REAL, 2.0)
    try:
        with pytest.raises(KeyboardInterrupt):
            gpu_run.run_all([step("slow", code)], 60.0)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    time.sleep(4)
    assert not mark.exists()


def test_the_steps_fit_ten_minutes():
    """By the limit on the whole; build, CUDA tests and benchmarks come before it can be reached."""
    steps = gpu_run.steps()
    assert gpu_run.TOTAL_SECONDS <= 600
    assert [s.name for s in steps[:3]] == ["build", "tests", "ops"]
    assert sum(s.seconds for s in steps[:4]) <= gpu_run.TOTAL_SECONDS


def test_the_rest_can_be_run_later():
    steps = gpu_run.steps(["heads", "ops"])
    assert [s.name for s in steps] == ["build", "ops", "heads"]
    outcomes = [Outcome(steps[0], "passed", 1, ""), Outcome(steps[1], "TIMED OUT", 1, "")]
    assert gpu_run.to_go_on_with(outcomes, steps) == 'make gpu STEPS="ops heads"'
    outcomes = [Outcome(s, "passed", 1, "") for s in steps]
    assert gpu_run.to_go_on_with(outcomes, steps) == ""
    with pytest.raises(SystemExit, match="no step is called nonsense; there are: build tests ops"):
        gpu_run.steps(["nonsense"])


def test_every_group_is_a_step():
    from bench.gpu_ops import GROUPS

    assert set(GROUPS) <= {step.name for step in gpu_run.steps()}


def test_results_are_written_as_they_come(tmp_path):
    """What failed, and what found no time, is named; what was measured before is in the file."""
    from bench.gpu_timing import Results

    results = Results(tmp_path / "deep" / "ops.json", {"machine": {}}, 60.0)
    results.add({"op": "draw", "microseconds": 3.0})
    with results.attempt("broken"):
        raise RuntimeError("does not compile")
    results.deadline = 0.0
    with results.attempt("late") as there_is_time:
        assert not there_is_time
    assert json.loads((tmp_path / "deep" / "ops.json").read_text()) == {
        "machine": {},
        "results": [{"op": "draw", "microseconds": 3.0}],
        "left_out": ["broken: RuntimeError: does not compile", "late: no time left"],
    }


@pytest.mark.parametrize("buffers", [1, 2, 3, 20, 64])
def test_graphs_are_long_and_go_round_their_buffers(buffers):
    calls = calls_over(buffers)
    assert calls >= 20 and calls % buffers == 0 and calls < 20 + buffers


def test_every_measurement_runs(monkeypatch, tmp_path):
    """All but the clock, on the CPU and small: nothing of it should be first tried on a GPU."""
    from bench import gpu_ops, gpu_timing, models
    from bench.gpu_timing import Results

    def timed(call, buffers):
        call(buffers - 1)
        return {"microseconds": 1.0, "timed_as": "eager"}

    def buffers_of(rows, vocab, dtype):
        return [torch.randn(rows, vocab).to(dtype)] * 2

    small = {
        "DEVICE": "cpu",
        "DTYPES": (torch.float32,),
        "PAPER_SHAPES": [(30, 4), (5000, 1)],
        "OTHER_SHAPES": [(7, 2)],
        "BASELINE_SHAPE": (6, 50),
        "HEADS": {"tiny": (3, 8, 20)},
        "GENERATIONS": {"bundled": 2, "tiny": 2},
        "timed": timed,
        "buffers_of": buffers_of,
    }
    for name, value in small.items():
        monkeypatch.setattr(gpu_ops, name, value)
    monkeypatch.setitem(models.SIZES, "tiny", models.Size(64, 2, 2, 16, 28))
    monkeypatch.setattr(gpu_timing, "copy_bandwidth", lambda: 1e9)
    monkeypatch.setattr(torch, "compile", lambda function, **_: function)
    reports = {}
    for group, measure in gpu_ops.GROUPS.items():
        results = Results(tmp_path / f"{group}.json", {"machine": gpu_timing_facts()}, 600.0)
        measure(results)
        reports[group] = json.loads((tmp_path / f"{group}.json").read_text())
        absent = ("quack: ModuleNotFoundError", "flashinfer: ModuleNotFoundError")
        assert [x for x in reports[group]["left_out"] if not x.startswith(absent)] == []
    cases = {group: len(report["results"]) for group, report in reports.items()}
    assert cases == {"ops": 18, "heads": 4, "generations": 2, "baselines": 7, "shapes": 9}
    assert gpu_ops.page(reports).count("## ") == len(gpu_ops.GROUPS)
    assert "x the time" in gpu_ops.page(reports)


def gpu_timing_facts() -> dict:
    return dict.fromkeys(("gpu", "driver", "cuda", "torch", "commit", "date"), "?")


def test_the_page_shows_every_group():
    from bench.gpu_ops import page

    facts = gpu_timing_facts()
    shape = {"dtype": "bfloat16", "rows": 4, "vocab": 28, "candidates": 8, "microseconds": 2.0}
    results = {
        "ops": {"op": "draw", "gigabytes_per_second": 9.0, "percent_of_copy": 90.0},
        "heads": {"case": "head", "size": "paper", "times_product": 1.05},
        "baselines": {"way": "other", "ours_microseconds": 1.0},
        "generations": {
            "size": "text8",
            "steps": 4,
            "milliseconds": 10.0,
            "share_not_models": 0.25,
            "released_milliseconds": 30.0,
        },
    }
    reports = {
        group: {"machine": facts, "results": [shape | result], "left_out": ["x: no time left"]}
        for group, result in results.items()
    }
    text = page(reports)
    for cell in ("| 90 |", "| 1.05 |", "| 2.0 |", "| 25 % | 3.0 x the time |", "x: no time left"):
        assert cell in text
    assert "Ops, other vocabularies" not in text
