"""One page from pytest-benchmark JSON: tables of ratios, plots, limits and the machine."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

from bench.report import generations, operations, phases, scaling
from bench.report.page import bandwidth, matrix_rates


def write_report(results: list[Path], folder: Path) -> Path:
    """Read ``results`` and write REPORT.md with its plots into ``folder``; returns the page.

    A group is taken whole from the last file that has it, since ratios are within one run; the last
    file names the machine.
    """
    contents, groups = [json.loads(path.read_text()) for path in results], {}
    for content in contents:
        latest = defaultdict(list)
        for benchmark in content["benchmarks"]:
            latest[benchmark["group"]].append(benchmark)
        groups |= latest
    folder.mkdir(parents=True, exist_ok=True)
    sections = [
        "# Latency report",
        _machine(contents[-1]),
        _limits(groups),
        generations.section(groups),
        phases.section(groups, folder),
        _memory(groups),
        scaling.section(groups, folder),
        operations.section(groups),
    ]
    page = folder / "REPORT.md"
    temporary = page.with_suffix(".tmp")
    temporary.write_text("\n\n".join(part for part in sections if part) + "\n")
    temporary.replace(page)
    return page


def _machine(content: dict) -> str:
    info, cpu = content["machine_info"], content["machine_info"]["cpu"]
    commit = content["commit_info"]
    dirty = " with local changes" if commit.get("dirty") else ""
    device = info.get("device", "cpu")
    lines = [
        f"- processor: {cpu.get('brand_raw', 'unknown')}, {info['threads']} threads, kernels "
        f"for {info['cpu_isa']}",
        *([] if device == "cpu" else [f"- everything ran on {device}"]),
        *([f"- large models in {info['dtype']}, on both sides"] if "dtype" in info else []),
        f"- torch {info['torch']}, Python {info['python_version']}, {info['platform']}",
        f"- commit {commit.get('id', 'unknown')[:12]}{dirty}, {content['datetime'][:10]}",
        "",
        "Ratios are of medians within this one run; spread is the interquartile range over the "
        "median.",
    ]
    return "\n".join(lines)


def _limits(groups: dict) -> str:
    if "limits" not in groups:
        return ""
    lines = ["## Limits of this machine", "", "The best round of each, in the same run:", ""]
    if read := bandwidth(groups):
        lines.append(f"- read bandwidth: {read / 1e9:.0f} GB/s")
    for dtype, (rate, product) in matrix_rates(groups).items():
        # Old runs measured one product and did not name its shape.
        lines.append(f"- matrix rate in {dtype}: {rate / 1e9:.0f} GFLOP/s ({product.strip()})")
    return "\n".join(lines)


def _memory(groups: dict) -> str:
    for benchmark in groups.get(generations.MEMORY, []):
        info = benchmark["extra_info"]
        step, alone = info["peak_bytes"] / 2**20, info["activation_bytes"] / 2**20
        return (
            "## Memory\n\nOne energy step of paper size (L = 1024, V = 50258, K = 16) takes "
            f"{step:.0f} MiB above the models' weights. The models' own activations take "
            f"{alone:.0f} MiB at the same micro-batch, so everything else takes "
            f"{step - alone:.0f} MiB."
        )
    return ""
