"""Units of work that are not there yet, then the figures and the page."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench.samplers.given import EXACT, MDLM, Compared, samplers
from bench.samplers.page import write
from bench.samplers.problems import Figure, Problem
from edlm_engine.checkpoints.files import write_json
from edlm_engine.evaluation.units import measure, read_units

CLEAR = 4  # standard errors
WORK = ("nfe", "ar", "positions", "depth", "ar_depth")


@dataclass(frozen=True)
class Asked:
    """units: where units of work lie. out: where the page goes. minutes: begin no unit later.
    families: what to make units of, everything if empty; the page has all that is there."""

    units: Path
    out: Path
    minutes: float | None = None
    others: Sequence[str] = ()
    families: Sequence[str] = ()
    progress: bool = True


@dataclass(frozen=True)
class Task:
    """A problem, and how many sequences of each sampler: `num` in units of `chunk`."""

    problem: Problem
    num: int
    chunk: int


def run(asked: Asked, tasks: Sequence[Task], facts: Mapping[str, str]) -> Path:
    """Work for as long as it is let, evenly over tasks and samplers, and write the page."""
    began, whole = time.monotonic(), True
    compared = {task.problem.name: _compared(task.problem, asked.others) for task in tasks}
    _require_families(asked.families, [each for some in compared.values() for each in some])
    rounds = max(-(-task.num // task.chunk) for task in tasks)
    for number in range(1, rounds + 1):
        for task in tasks:
            if number * task.chunk > task.num:
                continue
            left = None
            if asked.minutes is not None:
                left = asked.minutes - (time.monotonic() - began) / 60
            whole &= measure(
                [
                    task.problem.setting(each)
                    for each in compared[task.problem.name]
                    if not asked.families or each.family in asked.families
                ],
                task.problem,
                asked.units / task.problem.name,
                num=number * task.chunk,
                chunk=task.chunk,
                manifest={"problem": task.problem.name, **task.problem.facts},
                minutes=left,
                progress=asked.progress,
            )
    results = [summary(task.problem, compared[task.problem.name], asked.units) for task in tasks]
    asked.out.mkdir(parents=True, exist_ok=True)
    write_json(asked.out / "results.json", {"whole": whole, "facts": dict(facts), "tasks": results})
    return write(asked.out, results, facts, whole)


def _require_families(asked: Sequence[str], compared: Sequence[Compared]) -> None:
    there = sorted({each.family for each in compared})
    if unknown := sorted(set(asked) - set(there)):
        raise ValueError(f"there is no family {', '.join(unknown)}; there are {', '.join(there)}")


def _compared(problem: Problem, others: Sequence[str]) -> list[Compared]:
    return [*problem.extra, *samplers(problem.steps, problem.candidates, others, problem.orders)]


def summary(problem: Problem, compared: Sequence[Compared], units: Path) -> dict[str, Any]:
    """The figures of a problem's samplers, and what they took, from the units that are there."""
    found = []
    for each in compared:
        done = read_units(units / problem.name, problem.setting(each))
        rows = [row for unit in done for row in unit["sequences"]]
        if len(rows) < 2:
            continue
        rates = [unit["seconds"] / len(unit["sequences"]) for unit in done]
        found.append(
            {
                "sampler": each.name,
                "family": each.family,
                "budget": each.budget,
                "sequences": len(rows),
                "figures": problem.measure(rows),
                "work": {name: sum(row[name] for row in rows) / len(rows) for name in WORK},
                "seconds": {"least": min(rates), "mean": sum(rates) / len(rates)},
            }
        )
    add_shares(found, problem)
    return {
        "name": problem.name,
        "title": problem.title,
        "about": problem.about,
        "length": problem.length,
        "steps": problem.steps,
        "figures": problem.figures,
        "judged_by": problem.judged_by,
        "target": problem.target,
        "samplers": found,
    }


def add_shares(found: list[dict], problem: Problem) -> None:
    """Of the way from MDLM to the target in the figure judged by: 0 is none of it, 1 all.

    Nothing where the way is no longer than 4 standard errors: nothing can be said of its parts.
    """
    figures = {each["sampler"]: each["figures"].get(problem.judged_by) for each in found}
    base, target = figures.get(MDLM), figures.get(problem.target)
    if base is None or target is None:
        return
    if abs(target[0] - base[0]) <= CLEAR * math.hypot(base[1], target[1]):
        return
    for each in found:
        own = each["figures"].get(problem.judged_by)
        if each["sampler"] not in (MDLM, problem.target, EXACT) and own is not None:
            each["closed"] = closed(own, base, target)


def closed(own: Figure, base: Figure, target: Figure) -> Figure:
    """(own - base) / (target - base), with the error of `own` alone: the others are shared."""
    way = target[0] - base[0]
    return (own[0] - base[0]) / way, abs(own[1] / way)
