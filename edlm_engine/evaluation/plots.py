"""Quality against entropy and against cost, from summaries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edlm_engine.evaluation.settings import SHORT

Point = tuple[float, float, float]  # x, y, standard error of y


def require_matplotlib() -> None:
    """Raise ImportError saying what to install, unless matplotlib is there."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise ImportError("plots need matplotlib: pip install 'edlm_engine[plots]'") from error


def plot_quality(summaries: Sequence[dict[str, Any]], folder: Path) -> list[Path]:
    """`quality_entropy.png` and `quality_time.png`: nats per byte of the judge, or where there is
    none log p_AR, against the entropy and the seconds of a sequence; lines join what differs in
    temperature alone, or in steps alone."""
    measure, label = "judge", "judge, nats per byte (lower is better)"
    if not any("judge" in s["measures"] for s in summaries):
        measure, label = "log_p_ar", "log p of the energy's AR model, nats per token"
    shown = [s for s in summaries if measure in s["measures"]]
    swept = len({s["facts"].get("temperature", 1.0) for s in shown}) > 1
    along = "temperature" if swept else "steps"

    def at(x: Callable[[dict], float]) -> Callable[[dict], Point]:
        return lambda s: (x(s), s["measures"][measure]["mean"], s["measures"][measure]["stderr"])

    entropy = at(lambda s: s["measures"]["entropy"]["mean"])
    seconds = at(lambda s: s["seconds"]["mean"])
    return [
        draw(
            families(shown, along, entropy), folder / "quality_entropy.png", "entropy, nats", label
        ),
        draw(
            families(shown, "steps", seconds),
            folder / "quality_time.png",
            "seconds per sequence, beside whatever else ran",
            label,
            log=True,
        ),
    ]


def families(
    summaries: Sequence[dict[str, Any]], along: str, point: Callable[[dict], Point]
) -> dict[str, list[Point]]:
    """Points by family: summaries whose facts differ in `along` alone, in its order."""
    grouped: dict[str, list[dict]] = {}
    for summary in summaries:
        facts = {k: v for k, v in summary["facts"].items() if k != along}
        shown = {SHORT.get(k, k): v for k, v in facts.items() if k not in ("length", "energy")}
        name = " ".join([str(facts.get("energy", "")), *(f"{k}={v}" for k, v in shown.items())])
        grouped.setdefault(name, []).append(summary)

    def place(summary: dict) -> float:
        value = summary["facts"].get(along)
        return float("inf") if value is None else float(value)

    return {n: [point(s) for s in sorted(each, key=place)] for n, each in grouped.items()}


def draw(
    lines: dict[str, list[Point]], path: Path, x: str, y: str, *, title: str = "", log: bool = False
) -> Path:
    """Lines with error bars as a PNG file."""
    require_matplotlib()
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 5), layout="constrained")
    axes = figure.add_subplot()
    for name, points in lines.items():
        xs, ys, errors = zip(*points, strict=True)
        axes.errorbar(xs, ys, yerr=errors, marker="o", markersize=4, capsize=2, label=name)
    axes.set(xlabel=x, ylabel=y, title=title)
    if log:
        axes.set_xscale("log")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    temporary = path.with_suffix(".tmp.png")
    figure.savefig(temporary, dpi=120)
    temporary.replace(path)
    return path
