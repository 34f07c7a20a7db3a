"""The log of a training run as JSON lines, and the plot of it."""

from __future__ import annotations

import json
import os
from pathlib import Path

LOG, PLOT = "log.jsonl", "loss.png"


def append_log(run: Path, **entry: float) -> None:
    with open(run / LOG, "a", encoding="utf-8") as file:
        file.write(json.dumps(entry) + "\n")


def read_log(run: Path) -> list[dict[str, float]]:
    """All entries; a last line that a crash cut off is dropped. ValueError names a damaged line."""
    if not (run / LOG).is_file():
        return []
    lines = (run / LOG).read_text(encoding="utf-8").split("\n")
    entries = []
    for number, line in enumerate(lines[:-1], 1):
        try:
            entries.append(json.loads(line))
        except ValueError as error:
            raise ValueError(f"{run / LOG}, line {number}, is not JSON: {error}") from error
    return entries


def cut_log(run: Path, step: int) -> None:
    """Forget the entries after `step`: a resumed run writes them again."""
    kept = [entry for entry in read_log(run) if entry["step"] <= step]
    temporary = run / f"{LOG}.tmp"
    temporary.write_text("".join(json.dumps(entry) + "\n" for entry in kept), encoding="utf-8")
    os.replace(temporary, run / LOG)


def plot_losses(run: Path, unit: str = "nats per token") -> None:
    """Write loss.png: training loss and held-out loss over steps."""
    from matplotlib.figure import Figure

    entries = read_log(run)
    figure = Figure(figsize=(6, 3.6), dpi=100, layout="constrained")
    axes = figure.subplots()
    for key, style in (("loss", {"lw": 0.7, "alpha": 0.6}), ("held_out_loss", {"marker": "."})):
        points = [(entry["step"], entry[key]) for entry in entries if key in entry]
        if points:
            axes.plot(*zip(*points, strict=True), label=key.replace("_", " "), **style)
    axes.set(xlabel="step", ylabel=unit)
    axes.grid(alpha=0.3)
    if axes.lines:
        axes.legend()
    figure.savefig(run / f"{PLOT}.tmp", format="png")
    os.replace(run / f"{PLOT}.tmp", run / PLOT)
