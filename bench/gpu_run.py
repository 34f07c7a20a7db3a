"""`make gpu`: build, tests, compute-sanitizer and benchmarks on a machine with a GPU.

One command of at most ten minutes, offline, with the Python it is called by: it makes no virtual
environment and fetches nothing. Steps run in the order of their worth, each with its share of the
time and its own result file; one that finds no time left is reported as not run, and counts as a
failure. The last line names the steps to go on with: `make gpu STEPS="heads shapes"`, which builds
first.
"""

import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
TOTAL_SECONDS = 570.0


@dataclass(frozen=True)
class Step:
    name: str
    command: list[str]
    seconds: float
    """At most; less where less is left of the whole."""
    env: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Outcome:
    step: Step
    verdict: str
    seconds: float
    last_line: str


def steps(names: list[str] | None = None) -> list[Step]:
    """All steps, or the build and those of these names, in the same order."""
    python = sys.executable
    sanitizer = shutil.which("compute-sanitizer") or "/usr/local/cuda/bin/compute-sanitizer"
    pytest = [python, "-m", "pytest", "python_tests", "-m"]
    ctest = ["ctest", "--test-dir", "build/cmake", "-j", "8", "--output-on-failure"]

    def sanitize(tool: str) -> Step:
        command = [sanitizer, "--tool", tool, "--error-exitcode", "9"]
        # Every tensor an allocation of its own, so that a stray access leaves it.
        no_cache = (("PYTORCH_NO_CUDA_MEMORY_CACHING", "1"),)
        return Step(tool, [*command, python, "-m", "bench.gpu_sanitize"], 60, no_cache)

    def measure(group: str, seconds: int) -> Step:
        command = [python, "-m", "bench.gpu_ops", group, "--seconds", str(seconds)]
        return Step(group, command, seconds + 30)

    every = [
        Step("build", [python, "setup.py", "build_ext", "--inplace"], 180, (("EDLM_CUDA", "ON"),)),
        Step("tests", [*pytest, "gpu and not large"], 150),
        measure("ops", 90),
        sanitize("memcheck"),
        sanitize("racecheck"),
        measure("heads", 60),
        measure("generations", 120),
        measure("baselines", 90),
        sanitize("initcheck"),
        measure("shapes", 90),
        Step("ctest", ctest, 300),
        Step("cpu-tests", [*pytest, "not gpu and not large"], 400),
    ]
    unknown = set(names or ()) - {step.name for step in every}
    if unknown:
        known = " ".join(step.name for step in every)
        raise SystemExit(f"no step is called {' or '.join(sorted(unknown))}; there are: {known}")
    return [step for step in every if not names or step.name in ("build", *names)]


def run(step: Step, deadline: float) -> Outcome:
    left = deadline - time.monotonic()
    if left < 5:
        return Outcome(step, "NOT RUN", 0.0, "no time left")
    print(f"=== {step.name}: {' '.join(step.command)}", flush=True)
    start = time.monotonic()
    path = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    try:
        with subprocess.Popen(
            step.command,
            cwd=ROOT,
            env=os.environ | {"PATH": path} | dict(step.env),
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        ) as process:
            try:
                output, _ = process.communicate(timeout=min(step.seconds, left))
                verdict = "passed" if process.returncode == 0 else "FAILED"
            except BaseException as stop:
                # What it started, compilers say, would go on, and hold its output open.
                os.killpg(process.pid, signal.SIGKILL)
                if not isinstance(stop, subprocess.TimeoutExpired):
                    raise
                output, verdict = process.communicate()[0], "TIMED OUT"
    except FileNotFoundError as missing:
        output, verdict = str(missing), "FAILED"
    lines = [line for line in output.splitlines() if line.strip()] or [""]
    print("\n".join(lines[-12 if verdict == "passed" else -60 :]), flush=True)
    return Outcome(step, verdict, time.monotonic() - start, lines[-1].strip("= ")[:60])


def run_all(steps: list[Step], seconds: float) -> list[Outcome]:
    """The steps in turn, none beyond `seconds` from now; nothing after a build that failed."""
    deadline = time.monotonic() + seconds
    outcomes: list[Outcome] = []
    for step in steps:
        outcomes.append(run(step, deadline))
        if step.name == "build" and outcomes[-1].verdict != "passed":
            break
    return outcomes


def summary(outcomes: list[Outcome]) -> str:
    return "\n".join(
        f"{o.step.name:14} {o.verdict:10} {o.seconds:6.1f} s   {o.last_line}" for o in outcomes
    )


def to_go_on_with(outcomes: list[Outcome], steps: list[Step]) -> str:
    """The command for the steps that have not passed; empty where all have."""
    passed = {o.step.name for o in outcomes if o.verdict == "passed"}
    missing = [step.name for step in steps if step.name not in passed and step.name != "build"]
    return f'make gpu STEPS="{" ".join(missing)}"' if missing else ""


def main(names: list[str]) -> int:
    wanted = steps(names)

    import torch

    if not torch.cuda.is_available():
        print("make gpu needs a CUDA device and a torch built for it; none was found")
        return 1
    outcomes = run_all(wanted, TOTAL_SECONDS)
    page = ROOT / "docs" / "gpu_results.md"
    if page.exists():
        print(f"\n{page.read_text()}")
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}")
    print(summary(outcomes))
    print(to_go_on_with(outcomes, wanted))
    return int(any(o.verdict != "passed" for o in outcomes))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
