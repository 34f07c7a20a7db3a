"""The page: a table and a plot of each task."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench.report.page import table
from bench.samplers.given import AR, MDLM, NAIVE, TEXT
from edlm_engine.evaluation.plots import Point, draw


def write(
    folder: Path, tasks: Sequence[Mapping[str, Any]], facts: Mapping[str, str], whole: bool
) -> Path:
    """README.md and its plots."""
    oracle = [task for task in tasks if not task["name"].startswith("pair")]
    pair = [task for task in tasks if task["name"].startswith("pair")]
    listed = dict(facts)
    if not whole:
        listed["state"] = "the run was stopped early; the same command goes on"
    parts = [HEAD, "\n".join(f"- {name}: {value}" for name, value in listed.items()), READING]
    if oracle:
        parts += [ORACLE, _overview(oracle), *(_section(task, folder) for task in oracle)]
    if pair:
        parts += [PAIR, _overview(pair), *(_section(task, folder) for task in pair)]
    page = folder / "README.md"
    temporary = page.with_suffix(".tmp")
    temporary.write_text("\n\n".join(parts) + "\n")
    temporary.replace(page)
    return page


def _overview(tasks: Sequence[Mapping[str, Any]]) -> str:
    """The gap closed in every task, samplers at equal evaluations of the energy together."""
    cells: dict[str, dict[str, str]] = {}
    costs: dict[str, float] = {}
    for task in tasks:
        for each in task["samplers"]:
            if "closed" not in each:
                continue
            name, cost = each["sampler"], 0.0
            if each["budget"] is not None:
                cost = each["budget"] / task["steps"]
                name = f"{each['family']}, {cost:.0f} a step"
            cells.setdefault(name, {})[task["name"]] = _cell(each["closed"], 2)
            costs[name] = cost
    rows = [
        [name, *(cells[name].get(task["name"], "-") for task in tasks)]
        for name in sorted(cells, key=lambda name: costs[name])
    ]
    header = ["gap closed", *(task["title"] for task in tasks)]
    return f"{OVERVIEW}\n\n{table(header, rows)}"


def _section(task: Mapping[str, Any], folder: Path) -> str:
    shown = task["samplers"]
    if not shown:
        return f"### {task['title']}\n\nNothing yet."
    figures = {k: v for k, v in task["figures"].items() if any(k in s["figures"] for s in shown)}
    header = ["sampler", "texts", *(title for title, _ in figures.values()), "gap closed"]
    header += ["denoiser", "AR", "one after another", "s, fastest"]
    rows = []
    for each in sorted(shown, key=_order):
        work = each["work"]
        cells = [each["sampler"], str(each["sequences"])]
        cells += [_cell(each["figures"].get(k), digits) for k, (_, digits) in figures.items()]
        cells += [_cell(each.get("closed"), 2), f"{work['nfe']:.1f}", f"{work['ar']:.1f}"]
        cells += [f"{work['depth']:.0f} + {work['ar_depth']:.0f}"]
        rows.append([*cells, f"{each['seconds']['least']:.4f}"])
    name = f"{task['name']}.png"
    title, _ = task["figures"][task["judged_by"]]
    draw(_lines(task), folder / name, "evaluations of a model per text", title, log=True)
    plots = [f"![{title} over evaluations]({name})"]
    if "entropy" in figures:
        frontier = f"{task['name']}-entropy.png"
        draw(_lines(task, "entropy"), folder / frontier, figures["entropy"][0], title)
        plots.append(f"![{title} over entropy]({frontier})")
    return "\n\n".join(
        [
            f"### {task['title']}",
            f"{task['about']}; {task['steps']} steps where not said. The gap is that of "
            f'"{title}" from MDLM to {task["target"]}.',
            *plots,
            table(header, rows),
        ]
    )


def _order(each: Mapping[str, Any]) -> tuple:
    """By budget, so that what scores as many candidates stands together."""
    budget = each["budget"]
    return (budget is not None, budget or 0)


def _lines(task: Mapping[str, Any], along: str | None = None) -> dict[str, list[Point]]:
    lines: dict[str, list[Point]] = {}
    for each in task["samplers"]:
        if not _plotted(each):
            continue
        y = each["figures"].get(task["judged_by"])
        work = each["work"]["nfe"] + each["work"]["ar"]
        x = work if along is None else each["figures"].get(along, (math.nan,))[0]
        if y is None or (along is None and x == 0):
            continue
        error = 0.0 if math.isnan(y[1]) else y[1]
        lines.setdefault(each["family"], []).append((x, y[0], error))
    return {name: sorted(points) for name, points in lines.items()}


def _plotted(each: Mapping[str, Any]) -> bool:
    """More than ten lines cannot be told apart: orders, some of them far off, are not drawn."""
    with_energy = each["budget"] is not None or each["family"].startswith("speculative")
    return (with_energy and each["family"] != NAIVE) or each["family"] in (MDLM, TEXT, AR)


def _cell(figure: Sequence[float] | None, digits: int) -> str:
    if figure is None:
        return "-"
    value, error = figure
    return f"{value:.{digits}f}" + ("" if math.isnan(error) else f" ±{error:.{digits}f}")


HEAD = """# Samplers over one denoiser

Written by `edlm bench samplers`. Every sampler gets the same denoiser, the same AR model as energy,
the same known tokens and a seed for each text. `--sampler module:function` adds another: a function
`(denoiser, energy, canvas [B, L], seeds) -> tokens [B, L]`, see `bench/samplers/__init__.py`."""

READING = """± is one standard error over texts (of the first order for total variation and KL);
that of the gap closed is of the sampler's own figure alone. "denoiser" and "AR" are evaluations of
either model per text, one being a whole sequence through it, counted where the models are called;
"one after another" are calls of the denoiser + the AR model that had to follow each other, of a
batch. Rows are in the order of how many candidates they may score, those without a number of them
first, so that equal evaluations of the energy stand together; "smc" evaluates the denoiser K times
as often besides. The released loops are restated with sign and layout right; their float32 noise
is theirs. "joint" is the paper's correction, "coAR" its variant that ignores the tokens to the
right. Seconds are per text, of the fastest unit of work. Orders and coAR are in the tables only."""

ORACLE = """## Models without error

The denoiser and the AR model are exact: those of a hidden Markov model (as in arXiv 2602.19619), so
that what is measured is the sampler's error alone. "Exact draws" are of the law itself, measured as
all others are: what they show is the floor of a figure.

- Where all completions are counted, total variation and KL are of the whole law. Their floor, the
  mean figure of as many exact draws, is subtracted.
- Elsewhere no divergence of the whole law is known. TV of tokens, of neighbours and of pairs
  further apart, and the Kolmogorov-Smirnov distance of log p, cannot be greater than the whole
  law's total variation, but for their floor. A mean of log p can be right for a wrong law: it is
  too high where a sampler prefers what is likely."""

OVERVIEW = """### The gap closed

Of the way from MDLM to the law (or the text, or AR sampling) in the figure that each task names, 0
being none and 1 all of it; below 0 is farther than MDLM; none are given where MDLM is within 4
standard errors of the aim. "4 a step" scores as many candidates in
all as 4 in each step."""

PAIR = """## The bundled pair

Its models err, so that nothing is exact: log p_AR says how well a text suits the energy's own
model, and texts may suit it too well, which their entropy shows; compare both with AR sampling, or
with the text itself where that had gaps. "-log p, one token at a time" is the denoiser's own joint
along random orders: what it says of the texts of "one token at a time" is what equal laws would
give."""
