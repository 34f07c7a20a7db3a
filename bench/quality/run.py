"""What `python -m bench.quality` does: make what is not there yet, then write the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from bench.quality.energies import energies
from bench.quality.experiments import Plan, plan
from bench.quality.page import Page
from edlm_engine import Engine
from edlm_engine.checkpoints.files import read_json, write_json
from edlm_engine.evaluation.judge import Judge, standard_error
from edlm_engine.evaluation.settings import Setting
from edlm_engine.evaluation.summary import summarise
from edlm_engine.evaluation.units import Measures, measure, read_units

EXPERIMENTS = ("steps", "grid", "energies", "faults")
JOINT_DRAWS = 2


@dataclass(frozen=True)
class Asked:
    """What is asked for. units: where units of work lie. out: where the page goes."""

    units: Path
    out: Path
    only: Sequence[str] = EXPERIMENTS
    num: int = 256
    chunk: int = 8
    energy_windows: int = 32
    minutes: float | None = None
    progress: bool = True


def run(
    asked: Asked,
    pair: str,
    engines: Mapping[str, Engine],
    judge: Judge,
    facts: Mapping[str, str],
    text: Tensor | None = None,
) -> Path:
    """The page. `engines` as `plan` takes them; `text`: windows of held-out text, if there."""
    experiments, ar = plan(engines), engines["ar"]
    settings = _chosen(experiments, asked.only)
    records = {}
    if text is not None and "energies" in asked.only:
        windows = text[: asked.energy_windows]
        records = energies(
            engines, windows, asked.units, chunk=asked.chunk, progress=asked.progress
        )
    model = ar.energy.model  # type: ignore[union-attr]  # an AR energy
    whole = measure(
        settings,
        Measures(ar, judge, model, joint_draws=JOINT_DRAWS),
        asked.units,
        num=asked.num,
        chunk=asked.chunk,
        manifest={"pair": pair, "judge": judge.name, "joint_draws": JOINT_DRAWS},
        minutes=asked.minutes,
        progress=asked.progress,
    )
    summaries = summarise(asked.units, settings, joint=experiments.joint)
    asked.out.mkdir(parents=True, exist_ok=True)
    write_json(asked.out / "results.json", {"whole": whole, "settings": summaries})
    by_key = {setting.key: setting for setting in settings}
    for summary in summaries:
        found = read_units(asked.units, by_key[summary["key"]])
        summary["judged"] = [record["judge"] for unit in found for record in unit["sequences"]]
    page = Page(
        plan=experiments,
        summaries={summary["key"]: summary for summary in summaries},
        energies=records,
        text=None if text is None else _judged_text(ar, judge, text[: asked.num], asked),
        facts=facts,
        on=f"pair {pair!r}",
        whole=whole,
    )
    return page.write(asked.out)


def _chosen(experiments: Plan, only: Sequence[str]) -> list[Setting]:
    groups = {
        "steps": experiments.steps,
        "grid": experiments.grid,
        "faults": [*experiments.faults, *experiments.noise],
    }
    wanted = [experiments.joint, *(s for name in only for s in groups.get(name, []))]
    return list({setting.key: setting for setting in wanted}.values())


def _judged_text(engine: Engine, judge: Judge, windows: Tensor, asked: Asked) -> dict[str, float]:
    """The judge on held-out text, kept beside the units."""
    file = asked.units / f"held-out-{len(windows)}.json"
    if not file.is_file():
        texts = [engine.tokenizer.decode(row) for row in windows.tolist()]
        rates: torch.Tensor = judge.nats_per_byte(texts, progress=asked.progress)
        write_json(file, {"mean": rates.mean().item(), "stderr": standard_error(rates)})
    return read_json(file)
