"""Cost as work grows: tables, plots, and in words where growth is linear and where not."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bench.report.page import Groups, median, spread, starting, table
from bench.report.plots import plt

PREFIX = "scaling with "
# How far an exponent may be from 1 for growth to be called linear.
LINEAR = 0.12


def section(groups: Groups, folder: Path) -> str:
    found = {name.removeprefix(PREFIX): r for name, r in starting(groups, PREFIX)}
    if not found:
        return ""
    _plot(found, folder / "scaling.png")
    parts = ["## As work grows", "![time as one thing grows](scaling.png)"]
    parts.append("\n".join(f"- {sentence(axis, results)}" for axis, results in found.items()))
    for small, model in ((False, "bundled model"), (True, "small random model")):
        rows = []
        for axis, results in found.items():
            if axis.endswith("small model") != small:
                continue
            for b in results:
                info = b["extra_info"]
                ratio = f"{median(b) / median(results[0]):.2f} x"
                rows.append([info["name"], ratio, f"{info['nfe']:.1f}"])
                rows[-1] += [f"{info['energy_evaluations']:.0f}", spread(b)]
        header = [model, "time", "NFE per sequence", "candidates scored", "spread"]
        if rows:
            parts.append(table(header, rows))
    return "\n\n".join(parts)


def exponent(x: list[float], y: list[float]) -> float:
    """b of y = a x^b, by least squares of the logarithms."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


def sentence(axis: str, results: list[dict]) -> str:
    """How time grows along an axis, and why, from the numbers measured."""
    x = [b["extra_info"]["value"] for b in results]
    y = [median(b) for b in results]
    if len(x) < 3:
        return f"**{axis}**: too few points to tell."
    if min(x) == 0:
        return _of_the_window(axis, results)
    first, last = exponent(x[:2], y[:2]), exponent(x[-3:], y[-3:])
    verdict = "linear"
    if abs(last - 1) > LINEAR:
        verdict = "faster than linear" if last > 1 else "slower than linear"
    growth = (
        f"**{axis}**: from {x[-3]} to {x[-1]} time grows with exponent {last:.2f}, {verdict}; "
        f"from {x[0]} to {x[1]} with {first:.2f}."
    )
    return " ".join(part for part in (growth, _reason(axis, results, first, last)) if part)


def _reason(axis: str, results: list[dict], first: float, last: float) -> str:
    info = [b["extra_info"] for b in results]
    nfe = [i["nfe"] for i in info]
    jump = median(results[1]) / median(results[0])
    if axis == "K" and info[0]["energy_evaluations"] == 0:
        return (
            f"The step from K={info[0]['value']} to K={info[1]['value']} takes {jump:.2f} times "
            "as long because the energy starts: then the AR model reads every candidate."
        )
    if axis == "batch":
        text = f"NFE per sequence stays between {min(nfe):.1f} and {max(nfe):.1f}."
        if "long_nfe" in info[0]:
            ours = [i["long_nfe"] for i in info]
            released = [i["long_nfe_released"] for i in info]
            text += (
                f" For N=1024 the plans give {min(ours):.1f} to {max(ours):.1f} per sequence; the "
                f"released algorithm, with one cache for all, goes from {released[0]} to "
                f"{released[-1]}."
            )
        return text
    if axis == "steps":
        per_call = [median(b) / i["nfe"] for b, i in zip(results, info, strict=True)]
        return (
            f"NFE saturates: {nfe[0]:.0f} at N={info[0]['value']}, {nfe[-1]:.0f} at "
            f"N={info[-1]['value']}, since a position is revealed once; time per evaluation stays "
            f"between {min(per_call) / per_call[0]:.2f} and {max(per_call) / per_call[0]:.2f} of "
            "the first."
        )
    if axis == "length" and nfe[-1] > nfe[0]:
        return (
            f"NFE grows too, from {nfe[0]:.0f} to {nfe[-1]:.0f}: more positions, fewer steps "
            "that reveal nothing."
        )
    if axis.startswith("length") and last > 1 + LINEAR:
        return "Attention is quadratic in the length and gains on the rest, which is linear."
    if axis.startswith("vocabulary") and last - first > LINEAR:
        return "The blocks do not know the vocabulary: time is flat until the heads outweigh them."
    return ""


def _of_the_window(axis: str, results: list[dict]) -> str:
    """The window is a share of the steps: time against the candidates scored, a straight line."""
    scored = np.array([b["extra_info"]["energy_evaluations"] for b in results])
    y = np.array([median(b) for b in results]) / median(results[0])
    slope, start = np.polyfit(scored, y, 1)
    off = np.abs(slope * scored + start - y) / y
    return (
        f"**{axis}**: from {results[0]['extra_info']['value']} to "
        f"{results[-1]['extra_info']['value']} time rises to {y[-1]:.2f} times; it is a straight "
        f"line of the candidates scored to within {off.max():.0%}."
    )


def _plot(found: Groups, path: Path) -> None:
    figure, axes = plt.subplots(1, len(found), figsize=(3.2 * len(found), 3.2), squeeze=False)
    for axis, (name, results) in zip(axes[0], found.items(), strict=True):
        x = [b["extra_info"]["value"] for b in results]
        y = [median(b) / median(results[0]) for b in results]
        axis.plot(x, y, marker="o")
        if min(x) > 0:
            axis.plot(x, [v / x[0] for v in x], linestyle=":", color="grey", label="linear")
            axis.set_xscale("log", base=2)
            axis.set_yscale("log", base=2)
            axis.legend(fontsize=7)
        axis.set_xlabel(name)
        axis.set_ylabel("time, relative")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)
