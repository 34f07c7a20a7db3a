"""Texts of one or several configurations, judged: `edlm evaluate samples` as a function."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

from edlm_engine.checkpoints.files import write_json
from edlm_engine.energies.residual import ARResidualEnergy
from edlm_engine.engine import Engine
from edlm_engine.evaluation.joint import ONE_AT_A_TIME
from edlm_engine.evaluation.judge import Judge
from edlm_engine.evaluation.mauve import mauve_score, require_mauve
from edlm_engine.evaluation.settings import (
    Setting,
    engine_setting,
    engine_settings,
    replace_energy,
)
from edlm_engine.evaluation.summary import summarise
from edlm_engine.evaluation.units import Measures, measure, read_units
from edlm_engine.sampling.config import GenerationConfig

REPORT = "report.json"


def evaluate_samples(
    engines: Mapping[str, Engine],
    configs: Sequence[GenerationConfig],
    out: str | Path,
    *,
    judge: Judge | None = None,
    num: int = 64,
    chunk: int = 16,
    joint_draws: int = 4,
    mauve: bool = False,
    mauve_reference: Sequence[str] | None = None,
    seed: int = 0,
    manifest: Mapping[str, Any] | None = None,
    minutes: float | None = None,
    progress: bool = False,
) -> tuple[list[dict[str, Any]], bool]:
    """(summaries of every energy with every configuration, whether all of them are whole).

    engines: by the name of their energy; they share a denoiser and a tokenizer.
    judge: see `edlm_engine.evaluation.judge.independent_judge`; None leaves its figures out.
    num, chunk, seed, manifest, minutes: see `edlm_engine.evaluation.units.measure`.
    joint_draws: places in each text for its distance to one token at a time, whose texts are then
        sampled too, as the first setting; 0 leaves that out.
    mauve: MAUVE to `mauve_reference`, by default the texts of one token at a time.

    Figures are written to `out`/report.json. Deterministic for a seed but for the seconds. Raises
    ValueError for no engine or no configuration, ImportError where MAUVE is not installed, and as
    `measure`.
    """
    if not engines or not configs:
        raise ValueError("engines and configs must not be empty")
    if mauve:
        require_mauve()
        if judge is None:
            raise ValueError("MAUVE takes the judge's features: a judge must be given")
    engine = next(iter(engines.values()))
    settings, joint = engine_settings(engines, product(engines, configs)), None
    if joint_draws:
        one = replace(ONE_AT_A_TIME, length=configs[0].length)
        joint = engine_setting("none", replace_energy(engine), one)
        settings = [joint, *(s for s in settings if s.key != joint.key)]
    scorers = [e.energy.model for e in engines.values() if isinstance(e.energy, ARResidualEnergy)]
    measures = Measures(engine, judge, scorers[0] if scorers else None, joint_draws, seed)
    judged_by = {"judge": None if judge is None else judge.name, "joint_draws": joint_draws}
    whole = measure(
        settings,
        measures,
        out,
        num=num,
        chunk=chunk,
        seed=seed,
        manifest={**(manifest or {}), **judged_by},
        minutes=minutes,
        progress=progress,
    )
    summaries = summarise(out, settings, joint=joint)
    if mauve and judge is not None:
        if mauve_reference is None and joint is None:
            raise ValueError("mauve_reference must be given where joint_draws is 0")
        reference, by_key = (
            mauve_reference or _texts(out, settings[0]),
            {s.key: s for s in settings},
        )
        for summary in summaries:
            setting = by_key[summary["key"]]
            if setting is not joint or mauve_reference is not None:
                summary["mauve"] = mauve_score(judge, _texts(out, setting), reference)
    write_json(Path(out) / REPORT, {"whole": whole, "settings": summaries})
    return summaries, whole


def _texts(out: str | Path, setting: Setting) -> list[str]:
    return [record["text"] for unit in read_units(out, setting) for record in unit["sequences"]]
