"""Ratios instead of bare times: each group is shown against its own baseline, per row."""

import platform
import timeit
from pathlib import Path

import pytest
import torch

from bench.phases import synchronize
from edlm_engine import _C
from edlm_engine.execution.dtype import fast_dtype

HERE = Path(__file__).parent
# What all suites together amount to in products, most of it the models of paper size.
WHOLE_RUN_FLOPS = 115e12


def pytest_addoption(parser):
    parser.addoption("--device", default="cpu", help="what the suites run on: cpu or cuda")


def pytest_configure(config):
    device = torch.device(config.getoption("--device"))
    if device.type == "cuda" and not torch.cuda.is_available():
        raise pytest.UsageError(f"--device must be one that torch sees, got {device}")


def pytest_collection_finish(session):
    """The least that all suites can take here, from the time of one product."""
    config, suites = session.config, {path.name for path in HERE.glob("bench_*.py")}
    whole = not config.option.keyword and {item.path.name for item in session.items} >= suites
    if not whole or torch.device(config.getoption("--device")).type != "cpu":
        return
    a = torch.randn(1024, 1024).to(fast_dtype("cpu"))
    seconds = min(timeit.repeat(lambda: a @ a, number=1, repeat=10))
    minutes = WHOLE_RUN_FLOPS / (2 * 1024**3 / seconds) / 60
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    reporter.write_line(f"the suites' products alone would take {minutes:.0f} minutes here")


@pytest.fixture(scope="session")
def device(request) -> torch.device:
    return torch.device(request.config.getoption("--device"))


@pytest.fixture(scope="session")
def dtype(device) -> torch.dtype:
    """Of the large models, on both sides of a comparison: what the device multiplies fast."""
    return fast_dtype(device)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def product_dtype(request, dtype) -> torch.dtype:
    """Dtypes in which a matrix product is worth a measurement."""
    if request.param not in (torch.float32, dtype):
        pytest.skip("this device multiplies no bfloat16 matrices in hardware")
    return request.param


@pytest.fixture
def measure(benchmark, device):
    """measure(f, name, rows=n): time ``f`` as ``name``; ``rows`` makes unlike sizes comparable.

    ``setup``, not timed, makes the arguments of each round. On CUDA a round ends when the device
    has.
    """

    def run(function, name, *, rows=1, group=None, rounds=9, warmup=2, setup=None, **extra):
        benchmark.group = group or benchmark.group
        benchmark.extra_info |= {"name": name, "rows": rows, **extra}

        def timed(*args):
            result = function(*args)
            synchronize(device)
            return result

        if device.type == "cuda":  # for the first call compiles and captures
            warmup = max(warmup, 1)
        return benchmark.pedantic(
            timed, setup=setup, rounds=rounds, iterations=1, warmup_rounds=warmup
        )

    return run


def pytest_benchmark_update_machine_info(config, machine_info):
    device = torch.device(config.getoption("--device"))
    machine_info |= {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu_isa": _C.build_info()["cpu_isa"],
        "platform": platform.platform(),
        "device": torch.cuda.get_device_name(device) if device.type == "cuda" else "cpu",
        "dtype": str(fast_dtype(device)),
    }


def pytest_terminal_summary(terminalreporter, config):
    session = getattr(config, "_benchmarksession", None)
    if session is None or not session.benchmarks:
        return
    groups = {}
    for result in session.benchmarks:
        groups.setdefault(result.group, []).append(result)
    terminalreporter.section("ratios of medians, per row, to the first line of each group")
    for group, results in groups.items():
        base = results[0].stats.median / results[0].extra_info["rows"]
        terminalreporter.write_line(f"{group}")
        for r in results:
            ratio = r.stats.median / r.extra_info["rows"] / base
            spread = r.stats.iqr / r.stats.median
            terminalreporter.write_line(
                f"  {r.extra_info['name']:<40} {ratio:10.2f} x   (spread {spread:.0%})"
            )
