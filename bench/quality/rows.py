"""Summaries as points of a plot and rows of a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from bench.report.page import table
from edlm_engine.evaluation.judge import standard_error

Summary = dict[str, Any]

JUDGE = "judge, nats per byte (lower is better)"
COLUMNS = (
    ("judge", "judge, nats/byte", 4),
    ("entropy", "entropy, nats", 2),
    ("repetition_3", "rep-3", 3),
    ("log_p_ar", "log p of the AR model", 2),
    ("joint_gap", "gap to joint", 2),
    ("kl", "KL to joint", 3),
    ("ess", "ESS", 2),
)


def judged(summary: Summary) -> tuple[float, float]:
    """(mean, standard error)."""
    measure = summary["measures"]["judge"]
    return measure["mean"], measure["stderr"]


def entropy(summary: Summary) -> float:
    return summary["measures"]["entropy"]["mean"]


def cost(summary: Summary) -> float:
    """Evaluations of a model per sequence, the denoiser's and the energy's together."""
    measures = summary["measures"]
    return measures["nfe"]["mean"] + measures["energy_evaluations"]["mean"]


def plus_minus(measure: Mapping[str, float] | None, digits: int) -> str:
    if measure is None:
        return "-"
    return f"{measure['mean']:.{digits}f} ±{measure['stderr']:.{digits}f}"


def rows_of(shown: Sequence[Summary], base: Summary | None = None, against: str = "MDLM") -> str:
    """A table, a row for each summary. `base`: what paired differences of the judge are to, by
    default the denoiser alone at equal steps."""
    columns = [c for c in COLUMNS if any(c[0] in s["measures"] for s in shown)]
    heads = [head for _, head, _ in columns]
    header = ["setting", "texts", *heads, f"judge, less {against}", "evaluations", "s, fastest"]
    rows = []
    for summary in shown:
        other = base or _alone(summary, shown)
        cells = [plus_minus(summary["measures"].get(name), digits) for name, _, digits in columns]
        cells.append("-" if other is None or other is summary else _difference(summary, other))
        cells += [f"{cost(summary):.0f}", f"{summary['seconds']['least']:.2f}"]
        rows.append([summary["name"], str(summary["sequences"]), *cells])
    return table(header, rows)


def _alone(summary: Summary, shown: Sequence[Summary]) -> Summary | None:
    """MDLM with the steps of a setting that has an energy."""
    facts = summary["facts"]
    if facts.get("energy", "none") == "none":
        return None
    wanted = "none", facts["steps"]
    pairs = ((s["facts"].get("energy"), s["facts"].get("steps")) for s in shown)
    return next((s for s, pair in zip(shown, pairs, strict=True) if pair == wanted), None)


def _difference(summary: Summary, other: Summary) -> str:
    pairs = zip(summary["judged"], other["judged"], strict=False)
    values = torch.tensor([mine - theirs for mine, theirs in pairs], dtype=torch.float64)
    return f"{values.mean().item():+.4f} ±{standard_error(values):.4f}"
