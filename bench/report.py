"""One page from a pytest-benchmark JSON: tables of ratios, plots, limits and the machine."""

from __future__ import annotations

import json
from collections import defaultdict
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt

MEMORY = "paper size, one energy step, K=16"
PHASES = ("denoiser", "head + draw", "energy", "resample", "plan", "everything else")


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
    content = contents[-1]
    folder.mkdir(parents=True, exist_ok=True)
    sections = [
        "# Latency report",
        _machine(content),
        _generations(groups),
        _phases(groups, folder),
        _memory(groups),
        _scaling(groups, folder),
        _ops(groups),
    ]
    page = folder / "REPORT.md"
    temporary = page.with_suffix(".tmp")
    temporary.write_text("\n\n".join(part for part in sections if part) + "\n")
    temporary.replace(page)
    return page


def _median(benchmark: dict) -> float:
    return benchmark["stats"]["median"]


def _spread(benchmark: dict) -> str:
    rounds = benchmark["stats"]["rounds"]
    if rounds == 1:
        return "one run"
    return f"{benchmark['stats']['iqr'] / _median(benchmark):.0%}"


def _table(header: list[str], rows: list[list[str]]) -> str:
    lines = ["| " + " | ".join(header) + " |", "|" + "---|" * len(header)]
    return "\n".join(lines + ["| " + " | ".join(row) + " |" for row in rows])


def _machine(content: dict) -> str:
    info, cpu = content["machine_info"], content["machine_info"]["cpu"]
    commit = content["commit_info"]
    dirty = " with local changes" if commit.get("dirty") else ""
    return "\n".join(
        [
            f"- processor: {cpu.get('brand_raw', 'unknown')}, {info['threads']} threads, kernels "
            f"for {info['cpu_isa']}",
            f"- torch {info['torch']}, Python {info['python_version']}, {info['platform']}",
            f"- commit {commit.get('id', 'unknown')[:12]}{dirty}, {content['datetime'][:10]}",
            "",
            "Ratios are of medians within this one run; spread is the interquartile range over the "
            "median.",
        ]
    )


def _generations(groups: dict) -> str:
    parts = ["## Whole generations against other ways to sample"]
    for name, results in groups.items():
        if not name.startswith("paper size") or name == MEMORY:
            continue
        base = _median(results[0])
        rows = [
            [b["extra_info"]["name"], f"{_median(b) / base:.2f} x", _spread(b)] for b in results
        ]
        parts += [f"**{name}**", _table(["", "time", "spread"], rows)]
    return "\n\n".join(parts) if len(parts) > 1 else ""


def _rate(groups: dict, key: str, name: str) -> float | None:
    for benchmark in groups.get("limits", []):
        if benchmark["extra_info"]["name"] == name:
            return benchmark["extra_info"][key] / _median(benchmark)
    return None


def _phases(groups: dict, folder: Path) -> str:
    found = {name: r for name, r in groups.items() if name.startswith("phases: ")}
    if not found:
        return ""
    figure, axes = plt.subplots(1, len(found), figsize=(4 * len(found), 3.6), squeeze=False)
    rows = []
    for axis, (name, results) in zip(axes[0], found.items(), strict=True):
        labels = [b["extra_info"]["name"] for b in results]
        bottom = [0.0] * len(results)
        for phase in PHASES:
            values = [
                1e3 * b["extra_info"]["phases"].get(phase, 0) / b["extra_info"]["nfe"]
                for b in results
            ]
            axis.bar(labels, values, bottom=bottom, label=phase)
            bottom = [x + y for x, y in zip(bottom, values, strict=True)]
        axis.set_title(name.removeprefix("phases: "), fontsize=9)
        axis.set_ylabel("ms per step")
        for b in results:
            info = b["extra_info"]
            total = sum(info["phases"].values())
            shares = [f"{info['phases'].get(phase, 0) / total:.1%}" for phase in PHASES]
            rows.append([f"{info['size']} {info['name']}", f"{info['nfe']:.0f}", *shares])
            rows[-1] += [f"{info['ess']:.2f}" if info["ess"] else "-"]
            rows[-1] += [f"{info['peak_bytes'] / 2**20:.0f} MiB"]
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(folder / "phases.png", dpi=110)
    plt.close(figure)
    header = ["", "NFE", *PHASES, "mean ESS", "peak memory above the models"]
    return "\n\n".join(
        ["## Where the time goes", "![time per step by phase](phases.png)", _table(header, rows)]
    )


def _memory(groups: dict) -> str:
    for benchmark in groups.get(MEMORY, []):
        info = benchmark["extra_info"]
        step, alone = info["peak_bytes"] / 2**20, info["activation_bytes"] / 2**20
        return (
            "## Memory\n\nOne energy step of paper size (L = 1024, V = 50258, K = 16) takes "
            f"{step:.0f} MiB above the models' weights. The models' own activations take "
            f"{alone:.0f} MiB at the same micro-batch, so everything else takes "
            f"{step - alone:.0f} MiB."
        )
    return ""


def _scaling(groups: dict, folder: Path) -> str:
    found = {name: r for name, r in groups.items() if name.startswith("scaling with ")}
    if not found:
        return ""
    figure, axes = plt.subplots(1, len(found), figsize=(3.2 * len(found), 3.2), squeeze=False)
    rows = []
    for axis, (name, results) in zip(axes[0], found.items(), strict=True):
        x = [b["extra_info"]["value"] for b in results]
        y = [_median(b) / _median(results[0]) for b in results]
        axis.plot(x, y, marker="o")
        if min(x) > 0:
            axis.plot(x, [v / x[0] for v in x], linestyle=":", color="grey", label="linear")
            axis.set_xscale("log", base=2)
            axis.set_yscale("log", base=2)
            axis.legend(fontsize=7)
        axis.set_xlabel(name.removeprefix("scaling with "))
        axis.set_ylabel("time, relative")
        for b, ratio in zip(results, y, strict=True):
            info = b["extra_info"]
            rows.append([info["name"], f"{ratio:.2f} x", f"{info['nfe']:.1f}"])
            rows[-1] += [f"{info['energy_evaluations']:.0f}", _spread(b)]
    figure.tight_layout()
    figure.savefig(folder / "scaling.png", dpi=110)
    plt.close(figure)
    header = ["bundled model", "time", "NFE per sequence", "candidates scored", "spread"]
    return "\n\n".join(
        ["## As work grows", "![time as one thing grows](scaling.png)", _table(header, rows)]
    )


def _ops(groups: dict) -> str:
    bandwidth = _rate(groups, "bytes", "read")
    parts = ["## Ops"]
    if bandwidth:
        parts.append(
            f"Read bandwidth in this run: {bandwidth / 1e9:.0f} GB/s. Matrix products: "
            f"{_rate(groups, 'flops', 'product torch.float32') / 1e9:.0f} GFLOP/s in float32, "
            f"{_rate(groups, 'flops', 'product torch.bfloat16') / 1e9:.0f} in bfloat16."
        )
    for name, results in groups.items():
        if name.startswith(("phases: ", "scaling with ", "paper size", "limits")):
            continue
        base = _median(results[0]) / results[0]["extra_info"]["rows"]
        rows = []
        for b in results:
            info = b["extra_info"]
            share = "-"
            if bandwidth and "bytes" in info:
                share = f"{info['bytes'] / _median(b) / bandwidth:.0%}"
            ratio = _median(b) / info["rows"] / base
            rows.append([info["name"], f"{ratio:.2f} x", _spread(b), share])
        parts += [f"**{name}**", _table(["", "time per row", "spread", "of read bandwidth"], rows)]
    return "\n\n".join(parts)
