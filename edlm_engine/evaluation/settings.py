"""What is compared by `edlm evaluate samples`: ways to draw sequences, each with a name."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from typing import Any

from torch import Tensor

from edlm_engine.engine import Engine
from edlm_engine.sampling.config import GenerationConfig
from edlm_engine.sampling.generation import Generation

PLAIN = GenerationConfig()
# Fields that say nothing where there is no energy.
OF_THE_ENERGY = (
    "window",
    "energy_temperature",
    "correction",
    "shared_rests",
    "ess_threshold",
    "ess_target",
    "sweeps",
)


@dataclass(frozen=True)
class Drawn:
    """Sequences of one call, and what they took; see `Generation` for the fields."""

    sequences: Tensor  # [B, L] int64
    nfe: Tensor  # [B]
    energy_evaluations: Tensor  # [B]
    ess: Tensor | None = None  # [B, S], NaN where there was no step
    log_z: Tensor | None = None  # [B, S]
    seeds: Tensor | None = None  # [B]: by which the engine finds the reveal times again

    @classmethod
    def of(cls, out: Generation) -> Drawn:
        some = out.ess.shape[1] > 0
        return cls(
            sequences=out.sequences.cpu(),
            nfe=out.nfe.cpu(),
            energy_evaluations=out.energy_evaluations.cpu(),
            ess=out.ess.cpu() if some else None,
            log_z=out.log_z.cpu() if some else None,
            seeds=out.seeds.cpu(),
        )


@dataclass(frozen=True)
class Setting:
    """A way to draw sequences: draw(seeds), one int per sequence, deterministic.

    facts: what it is, as JSON; two settings are the same if their facts are. `family` and `point`
    of them place it in plots: the points of a family are joined, in the order of `point`.
    config: of an engine's sampler without energy, whose distance to one token at a time is known.
    """

    name: str
    facts: dict[str, Any]
    draw: Callable[[Sequence[int]], Drawn]
    config: GenerationConfig | None = None

    @property
    def key(self) -> str:
        """A short name for files, of the facts alone."""
        digest = hashlib.sha256(json.dumps(self.facts, sort_keys=True).encode()).hexdigest()
        return re.sub(r"[^A-Za-z0-9.=]+", "-", self.name).strip("-") + "-" + digest[:8]


def engine_settings(
    engines: Mapping[str, Engine], configs: Iterable[tuple[str, GenerationConfig]]
) -> list[Setting]:
    """A setting for each (energy, configuration), energies being keys of `engines`.

    What makes no difference is left out (an energy with one candidate, or without a window), and of
    settings that come out equal one is kept.
    """
    settings: dict[str, Setting] = {}
    for label, config in configs:
        engine = engines[label]
        if engine.energy is None or not uses_energy(config):
            label, engine = "none", replace_energy(engine)
            plain = {name: getattr(PLAIN, name) for name in OF_THE_ENERGY}
            config = replace(config, **plain, num_candidates=1)
        setting = engine_setting(label, engine, config)
        settings.setdefault(setting.key, setting)
    return list(settings.values())


def uses_energy(config: GenerationConfig) -> bool:
    """Whether a sampler of this configuration would call its energy at all."""
    alone = config.num_candidates == 1 and config.correction != "speculative"
    return not alone and config.energy_times is not None


def replace_energy(engine: Engine, energy: Any = None) -> Engine:
    """The same engine with another energy."""
    return Engine(
        engine.denoiser,
        energy,
        engine.tokenizer,
        engine.schedule,
        cuda_graphs=engine.cuda_graphs,
    )


def engine_setting(label: str, engine: Engine, config: GenerationConfig) -> Setting:
    def draw(seeds: Sequence[int]) -> Drawn:
        return Drawn.of(engine.generate(len(seeds), config=config, seed=list(seeds)))

    changed = _changed(config)
    with_energy = engine.energy is not None
    return Setting(
        name=_name(label, config, changed, with_energy),
        facts={"energy": label, **changed},
        draw=draw,
        config=None if with_energy else config,
    )


def _changed(config: GenerationConfig) -> dict[str, Any]:
    """The fields of a configuration that are not at their defaults, and always its steps and K."""
    plain, values = asdict(PLAIN), asdict(config)
    always = ("steps", "num_candidates")
    names = [f.name for f in fields(config)]
    return {n: _plain(values[n]) for n in names if n in always or values[n] != plain[n]}


def _plain(value: Any) -> Any:
    """As JSON gives it back."""
    return json.loads(json.dumps(value))


SHORT = {
    "num_candidates": "K",
    "steps": "N",
    "window": "w",
    "temperature": "T",
    "top_p": "p",
    "energy_temperature": "tau",
}


def _name(label: str, config: GenerationConfig, changed: dict[str, Any], with_energy: bool) -> str:
    shown: dict[str, Any] = {"steps": "L" if config.steps is None else config.steps}
    if with_energy:
        shown["num_candidates"] = config.num_candidates
        shown["window"] = config.window
    for name, value in changed.items():
        if name not in ("steps", "num_candidates", "window", "length"):
            shown[name] = value
    parts = [f"{SHORT.get(name, name)}={value}" for name, value in shown.items()]
    return " ".join([label if with_energy else "MDLM", *parts])
