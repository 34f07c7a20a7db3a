"""Where the time of a generation goes, and how near to the limit each phase is."""

from __future__ import annotations

from pathlib import Path

from bench.phases import PHASES
from bench.report.page import Groups, least_seconds, starting, table
from bench.report.plots import plt

MATRIX_PHASES = PHASES[:3]


def section(groups: Groups, folder: Path) -> str:
    found = dict(starting(groups, "phases: "))
    if not found:
        return ""
    _plot(found, groups, folder / "phases.png")
    results = [b for several in found.values() for b in several]
    shares, of_limit = [], []
    for b in results:
        info = b["extra_info"]
        name, total = f"{info['size']} {info['name']}", sum(info["phases"].values())
        row = [f"{info['phases'].get(phase, 0) / total:.1%}" for phase in PHASES]
        row += [f"{info['ess']:.2f}" if info["ess"] else "-"]
        row += [f"{info['peak_bytes'] / 2**20:.0f} MiB"]
        shares.append([name, f"{info['nfe']:.0f}", *row])
        if of_machine_rate(b, None, groups) is not None:
            parts = [of_machine_rate(b, phase, groups) for phase in (*MATRIX_PHASES, None)]
            of_limit.append([name, *("-" if x is None else f"{x:.0%}" for x in parts)])
    header = ["", "NFE", *PHASES, "mean ESS", "peak memory above the models"]
    parts = ["## Where the time goes", "![time per step by phase](phases.png)"]
    parts.append(table(header, shares))
    if of_limit:
        parts.append("Of this machine's matrix rate, counting products and attention only:")
        parts.append(table(["", *MATRIX_PHASES, "whole generation"], of_limit))
        parts += _in_words(results, groups)
    return "\n\n".join(parts)


def of_machine_rate(benchmark: dict, phase: str | None, groups: Groups) -> float | None:
    """A phase's matrix work over what this machine could have done in its time; None: of all."""
    info = benchmark["extra_info"]
    seconds, flops = info["phases"], info.get("phase_flops", {})
    if phase is None:
        seconds, work = sum(seconds.values()), sum(flops.values()) if flops else None
    else:
        seconds, work = seconds.get(phase), flops.get(phase)
    least = least_seconds(work, info.get("dtype"), groups)
    return least / seconds if least and seconds else None


def _in_words(results: list[dict], groups: Groups) -> list[str]:
    """One sentence for the largest size."""
    last = results[-1]
    name = f"{last['extra_info']['size']} size, {last['extra_info']['name']}"
    parts = [(phase, of_machine_rate(last, phase, groups)) for phase in MATRIX_PHASES]
    known = ", ".join(f"{phase} {share:.0%}" for phase, share in parts if share is not None)
    return [f"At {name}: {known} of this machine's matrix rate."]


def _plot(found: Groups, groups: Groups, path: Path) -> None:
    figure, axes = plt.subplots(1, len(found), figsize=(4 * len(found), 3.6), squeeze=False)
    for axis, (name, results) in zip(axes[0], found.items(), strict=True):
        labels = [b["extra_info"]["name"] for b in results]
        per_step = [1e3 / b["extra_info"]["nfe"] for b in results]
        bottom = [0.0] * len(results)
        for phase in PHASES:
            values = [
                b["extra_info"]["phases"].get(phase, 0) * scale
                for b, scale in zip(results, per_step, strict=True)
            ]
            bars = axis.bar(labels, values, bottom=bottom, label=phase)
            shares = [of_machine_rate(b, phase, groups) for b in results]
            totals = [sum(b["extra_info"]["phases"].values()) for b in results]
            visible = [
                f"{share:.0%}" if share and value > 0.08 * total * scale else ""
                for share, value, total, scale in zip(shares, values, totals, per_step, strict=True)
            ]
            axis.bar_label(bars, visible, label_type="center", fontsize=7, color="white")
            bottom = [x + y for x, y in zip(bottom, values, strict=True)]
        axis.set_title(name.removeprefix("phases: ").replace("torch.", ""), fontsize=9)
        axis.set_ylabel("ms per step; % of the matrix rate")
    axes[0][0].legend(fontsize=7)
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
