"""The runner of `make gpu`: its limit of time holds, and what it could not do it says."""

import signal
import sys
import time

import pytest

from bench import gpu_run
from bench.gpu_run import Step


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
    assert [s.name for s in steps[:3]] == ["build", "cuda tests", "op benchmarks"]
    assert sum(s.seconds for s in steps[:3]) <= gpu_run.TOTAL_SECONDS
