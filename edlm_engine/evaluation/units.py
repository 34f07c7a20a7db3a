"""The units of an evaluation: a setting and a few sequences, drawn, measured and written to a file.

A run that is cut short loses the unit it was at and goes on with the rest when run again.
"""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from edlm_engine.checkpoints.files import read_json, write_json
from edlm_engine.energies.protocol import AutoregressiveModel
from edlm_engine.energies.residual import sequence_log_probs
from edlm_engine.engine import Engine
from edlm_engine.evaluation.joint import can_refine, joint_nats, refinement_kl
from edlm_engine.evaluation.judge import Judge
from edlm_engine.evaluation.metrics import repetition, token_entropy
from edlm_engine.evaluation.settings import Drawn, Setting

MANIFEST, UNITS = "evaluation.json", "units"
NGRAMS = (2, 3, 4)


@dataclass(frozen=True)
class Measures:
    """What is measured of every sequence.

    engine: its denoiser, tokenizer and schedule are used, not its energy.
    judge: None leaves its columns out. scorer: a left-to-right model of the texts' own tokens.
    joint_draws: places looked at in each sequence for its distance to one token at a time; 0: none.
    """

    engine: Engine
    judge: Judge | None = None
    scorer: AutoregressiveModel | None = None
    joint_draws: int = 4
    seed: int = 0

    def of(self, setting: Setting, drawn: Drawn, first: int) -> list[dict[str, Any]]:
        """One record per sequence; the sequences are numbered from `first`."""
        tokens = drawn.sequences
        columns: dict[str, Any] = {
            "nfe": drawn.nfe,
            "energy_evaluations": drawn.energy_evaluations,
            "entropy": token_entropy(tokens),
        }
        for n in NGRAMS:
            if n <= tokens.shape[1]:
                columns[f"repetition_{n}"] = repetition(tokens, n)
        if drawn.ess is not None and drawn.log_z is not None:
            columns["ess"], columns["log_z"] = drawn.ess.nanmean(1), drawn.log_z.nanmean(1)
            columns["ess_least"] = drawn.ess.nan_to_num(torch.inf).amin(1)
        if self.scorer is not None:
            columns["log_p_ar"] = self._log_p_ar(tokens)
        if self.joint_draws:
            at: dict[str, Any] = {"draws": self.joint_draws, "seed": self.seed, "first": first}
            columns["joint"] = joint_nats(self.engine, tokens, **at)
            config = setting.config
            if config is not None and drawn.seeds is not None and can_refine(config):
                columns["kl"] = refinement_kl(self.engine, tokens, drawn.seeds, config, **at)
        texts = self._texts(tokens)
        if self.judge is not None:
            assert texts is not None
            columns["judge"] = self.judge.nats_per_byte(texts)
        records = [{"tokens": row} for row in tokens.tolist()]
        for i, record in enumerate(records):
            record |= {name: _number(values[i]) for name, values in columns.items()}
            if texts is not None:
                record["text"] = texts[i]
        return records

    def _texts(self, tokens: Tensor) -> list[str] | None:
        tokenizer = self.engine.tokenizer
        return None if tokenizer is None else [tokenizer.decode(row) for row in tokens.tolist()]

    @torch.inference_mode()
    def _log_p_ar(self, tokens: Tensor) -> Tensor:
        assert self.scorer is not None
        log_p = sequence_log_probs(self.scorer, tokens.to(self.scorer.head[0].device)).cpu()
        return log_p / (tokens.shape[1] - self.scorer.first_position)


def _number(value: Tensor) -> float | int | None:
    number = value.item()
    return number if math.isfinite(number) else None


def measure(
    settings: Sequence[Setting],
    measures: Measures,
    out: str | Path,
    *,
    num: int,
    chunk: int,
    seed: int = 0,
    manifest: dict[str, Any] | None = None,
    minutes: float | None = None,
    progress: bool = False,
) -> bool:
    """Make every unit that is not in the folder `out` yet; False if the time ran out before.

    num: sequences of each setting, a multiple of `chunk`; a larger one later goes on from there.
    Sequence i of every setting has seed `seed` + i, so settings are compared pair by pair. Units
    are made a chunk of `chunk` sequences at a time over all settings, so that a run that is
    stopped has as many sequences of each. `minutes`: no unit is begun after this time.
    `manifest`: what else must be equal for units to belong together. Raises ValueError if the
    folder holds an evaluation of something else, or numbers do not fit.
    """
    if chunk < 1 or num < 1 or num % chunk:
        raise ValueError(f"num must be a multiple of the chunk, got {num} and {chunk}")
    out = Path(out)
    (out / UNITS).mkdir(parents=True, exist_ok=True)
    _same_manifest(out, {**(manifest or {}), "chunk": chunk, "seed": seed})
    began, units = time.monotonic(), list(_units(settings, num, chunk))
    todo = [unit for unit in units if not unit_file(out, *unit).is_file()]
    with tqdm(
        total=len(units), initial=len(units) - len(todo), unit="unit", disable=not progress
    ) as bar:
        for setting, first in todo:
            if minutes is not None and time.monotonic() - began > 60 * minutes:
                return False
            bar.set_description(setting.name)
            content = _unit(setting, range(first, first + chunk), measures, seed)
            file = unit_file(out, setting, first)
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, content)
            bar.update()
    return True


def _units(settings: Sequence[Setting], num: int, chunk: int) -> Iterator[tuple[Setting, int]]:
    for first in range(0, num, chunk):
        for setting in settings:
            yield setting, first


def unit_file(out: Path, setting: Setting, first: int) -> Path:
    return out / UNITS / setting.key / f"{first:06d}.json"


def _unit(setting: Setting, numbers: range, measures: Measures, seed: int) -> dict[str, Any]:
    start = time.perf_counter()
    drawn = setting.draw([seed + number for number in numbers])
    seconds = time.perf_counter() - start
    return {
        "name": setting.name,
        "facts": setting.facts,
        "first": numbers.start,
        "seconds": seconds,  # of the whole call, beside whatever else ran
        "load": os.getloadavg()[0] if hasattr(os, "getloadavg") else None,
        "threads": torch.get_num_threads(),
        "sequences": measures.of(setting, drawn, numbers.start),
    }


def _same_manifest(out: Path, manifest: dict[str, Any]) -> None:
    file = out / MANIFEST
    if not file.is_file():
        write_json(file, manifest)
        return
    found = read_json(file)
    differ = [name for name in sorted({*found, *manifest}) if found.get(name) != manifest.get(name)]
    if differ:
        told = "; ".join(f"{n} was {found.get(n)!r}, is {manifest.get(n)!r}" for n in differ)
        raise ValueError(f"{out} holds another evaluation: {told}. Give another --out")


def read_units(out: str | Path, setting: Setting) -> list[dict[str, Any]]:
    """The units of a setting in order, as far as they go on from the first."""
    units, count = [], 0
    folder = Path(out) / UNITS / setting.key
    for file in sorted(folder.glob("*.json")):
        unit = read_json(file)
        if unit["first"] != count:
            break
        units.append(unit)
        count += len(unit["sequences"])
    return units
