"""Ratios instead of bare times: each group is shown against its own baseline, per row."""

import platform

import pytest
import torch

from edlm_engine import _C


@pytest.fixture
def measure(benchmark):
    """measure(f, name, rows): time ``f`` as ``name``; ``rows`` makes unlike sizes comparable."""

    def run(function, name, *, rows=1, group=None, rounds=9, warmup=2, **extra):
        benchmark.group = group or benchmark.group
        benchmark.extra_info |= {"name": name, "rows": rows, **extra}
        return benchmark.pedantic(function, rounds=rounds, iterations=1, warmup_rounds=warmup)

    return run


def pytest_benchmark_update_machine_info(machine_info):
    machine_info |= {
        "torch": torch.__version__,
        "threads": torch.get_num_threads(),
        "cpu_isa": _C.build_info()["cpu_isa"],
        "platform": platform.platform(),
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
