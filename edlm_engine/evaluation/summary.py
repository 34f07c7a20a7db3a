"""Units into figures: means with standard errors over seeds, paired differences, a table."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edlm_engine.evaluation.judge import standard_error
from edlm_engine.evaluation.metrics import distinct
from edlm_engine.evaluation.settings import Setting
from edlm_engine.evaluation.units import NGRAMS, read_units

# The measure of a record -> head and digits of its column. In nats per token where not said.
COLUMNS = {
    "judge": ("judge, nats/byte", 4),
    "entropy": ("entropy, nats", 3),
    "repetition_3": ("rep-3", 3),
    "joint": ("joint, nats", 3),
    "joint_gap": ("gap to joint", 3),
    "kl": ("KL, nats", 4),
    "log_p_ar": ("log p_AR", 3),
    "ess": ("ESS", 2),
    "nfe": ("NFE", 1),
    "energy_evaluations": ("scored", 1),
}
# Figures of all texts of a setting together, without an error.
WHOLE = {"distinct_2": ("distinct-2", 3), "mauve": ("MAUVE", 3)}
BARE = ("nfe", "energy_evaluations", "ess")  # shown without their standard errors


def summarise(
    out: str | Path, settings: Sequence[Setting], *, joint: Setting | None = None
) -> list[dict[str, Any]]:
    """One summary per setting that has two sequences or more, in their order.

    Each measure has `mean`, `stderr` and `n`; `versus` holds the same of the paired difference to
    the first setting. `joint`: the setting of one token at a time, to whose texts `joint_gap` is
    the paired difference in `joint`. `distinct_n` is over the sequences that all settings have.
    """
    records = {s.key: [r for u in read_units(out, s) for r in u["sequences"]] for s in settings}
    enough = [s for s in settings if len(records[s.key]) > 1]
    if not enough:
        return []
    if joint is not None:
        _add_gaps(records, records.get(joint.key, []))
    shared, base = min(len(records[s.key]) for s in enough), records[enough[0].key]
    summaries = []
    for setting in enough:
        own = records[setting.key]
        names = [n for n in {n: 0 for r in own for n in r} if n not in ("tokens", "text")]
        summary: dict[str, Any] = {
            "name": setting.name,
            "key": setting.key,
            "facts": setting.facts,
            "sequences": len(own),
            "measures": {n: m for n in names if (m := _mean([r.get(n) for r in own]))},
            "versus": {n: m for n in names if (m := _mean(_differences(own, base, n)))},
            "seconds": _seconds(read_units(out, setting)),
        }
        tokens = torch.tensor([r["tokens"] for r in own[:shared]])
        for n in NGRAMS:
            if n <= tokens.shape[1]:
                summary[f"distinct_{n}"] = distinct(tokens, n)
        summaries.append(summary)
    return summaries


def _add_gaps(records: Mapping[str, list[dict]], joint: list[dict]) -> None:
    for own in records.values():
        for record, reference in zip(own, joint, strict=False):
            mine, theirs = record.get("joint"), reference.get("joint")
            if mine is not None and theirs is not None:  # None: a text the denoiser never draws
                record["joint_gap"] = mine - theirs


def _differences(own: list[dict], base: list[dict], name: str) -> list[float | None]:
    return [
        None if mine.get(name) is None or theirs.get(name) is None else mine[name] - theirs[name]
        for mine, theirs in zip(own, base, strict=False)
    ]


def _mean(values: list[float | None]) -> dict[str, float] | None:
    """Mean, standard error and number of those that are there; None below two."""
    there: Tensor = torch.tensor([v for v in values if v is not None], dtype=torch.float64)
    if len(there) < 2:
        return None
    return {"mean": there.mean().item(), "stderr": standard_error(there), "n": len(there)}


def _seconds(units: list[dict]) -> dict[str, float | None]:
    """Per sequence, over the units, whatever ran beside them."""
    rates = torch.tensor([unit["seconds"] / len(unit["sequences"]) for unit in units])
    error = standard_error(rates) if len(rates) > 1 else None
    return {"mean": rates.mean().item(), "stderr": error, "least": rates.min().item()}


def table(summaries: Sequence[dict[str, Any]]) -> str:
    """The summaries as a table of text, mean and standard error in a cell."""
    names = [n for n in COLUMNS if any(n in s["measures"] for s in summaries)]
    whole = [n for n in WHOLE if any(n in s for s in summaries)]
    titles = [COLUMNS[n][0] for n in names] + [WHOLE[n][0] for n in whole]
    header = ["setting", "n", *titles, "s/sequence"]
    rows = [header]
    for summary in summaries:
        cells = [summary["name"], str(summary["sequences"])]
        cells += [_cell(summary["measures"].get(n), COLUMNS[n][1], n not in BARE) for n in names]
        cells += [f"{summary[n]:.{WHOLE[n][1]}f}" if n in summary else "-" for n in whole]
        rows.append([*cells, f"{summary['seconds']['mean']:.2f}"])
    widths = [max(len(row[i]) for row in rows) for i in range(len(header))]
    lines = [
        row[0].ljust(widths[0])
        + "".join("  " + cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))
        for row in rows
    ]
    return "\n".join([*lines, *_versus(summaries)])


def _versus(summaries: Sequence[dict[str, Any]]) -> list[str]:
    """The judge's paired differences to the first setting."""
    lines = []
    for summary in summaries[1:]:
        if difference := summary["versus"].get("judge"):
            lines.append(
                f"judge, {summary['name']} less {summaries[0]['name']}: {difference['mean']:+.4f} "
                f"nats per byte, standard error {difference['stderr']:.4f} over "
                f"{difference['n']} pairs"
            )
    return lines


def _cell(measure: dict[str, float] | None, digits: int, with_error: bool) -> str:
    if measure is None:
        return "-"
    error = f" ±{measure['stderr']:.{digits}f}" if with_error else ""
    return f"{measure['mean']:.{digits}f}{error}"
