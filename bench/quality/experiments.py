"""The settings of each experiment."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import product

from bench.quality.samplers import RELEASED, Faults, faults_setting, left_to_right_setting
from edlm_engine import Engine, GenerationConfig
from edlm_engine.evaluation.joint import ONE_AT_A_TIME
from edlm_engine.evaluation.settings import (
    Setting,
    engine_setting,
    engine_settings,
    replace_energy,
)

STEPS = (8, 16, 32, 64)
STEPS_WITH_ENERGY = (8, 16, 32)
CANDIDATES = (1, 2, 4, 8, 16)
WINDOWS = (0.0, 0.2, 0.5, 1.0)
GRID_STEPS = 16  # of the grid of candidates by windows
FAULT_STEPS, NOISE_STEPS = 16, 64


@dataclass(frozen=True)
class Plan:
    """The settings of the experiments that draw text; one may be of several."""

    steps: list[Setting]  # quality over steps
    grid: list[Setting]  # candidates by windows
    faults: list[Setting]  # the released code's
    noise: list[Setting]  # its random numbers, without an energy
    joint: Setting  # one token at a time

    def all(self) -> list[Setting]:
        every = [self.joint, *self.steps, *self.grid, *self.faults, *self.noise]
        return list({setting.key: setting for setting in every}.values())


def plan(engines: Mapping[str, Engine]) -> Plan:
    """`engines` by the name of their energy: "ar", "coar", and "nce" where there is one."""
    ar = engines["ar"]
    length = ar.denoiser.length

    def config(steps: int, candidates: int = 4, window: float = 1.0) -> GenerationConfig:
        return GenerationConfig(steps=steps, num_candidates=candidates, window=window)

    joint = engine_setting("none", replace_energy(ar), ONE_AT_A_TIME)
    alone = engine_settings(engines, [("ar", config(steps, 1)) for steps in STEPS])
    corrected = engine_settings(
        engines, [(energy, config(steps)) for energy in engines for steps in STEPS_WITH_ENERGY]
    )
    grid = [("ar", config(GRID_STEPS, k, w)) for k, w in product(CANDIDATES, WINDOWS)]
    model = ar.energy.model  # type: ignore[union-attr]  # an AR energy
    faults = {
        "control: no fault": Faults(),
        "+E for -E": Faults(plus_energy=True),
        "mixed rows": Faults(mixed_rows=True),
        "probabilities for log-probabilities": Faults(probabilities=True),
        "float32 race": Faults(noise="float32"),
        "bfloat16 candidates": Faults(noise="bfloat16"),
        "all of them, as released": RELEASED,
    }
    noises = {
        "control, K = 1": (Faults(), False),
        "float32 race, K = 1": (Faults(noise="float32"), False),
        "bfloat16 candidates, K = 1": (Faults(noise="bfloat16"), True),
    }
    return Plan(
        steps=[left_to_right_setting(model, length), *alone, *corrected],
        grid=engine_settings(engines, grid),
        faults=[
            faults_setting(name, ar, fault, steps=FAULT_STEPS, candidates=4, energy_steps=True)
            for name, fault in faults.items()
        ],
        noise=[
            faults_setting(
                name, ar, fault, steps=NOISE_STEPS, candidates=1, energy_steps=energy_steps
            )
            for name, (fault, energy_steps) in noises.items()
        ],
        joint=joint,
    )
