"""A run of a thousand steps from a sample of its steps: exact counts times measured costs.

Which steps of a run are alike follows from its reveal plan alone. Costs are measured on steps
spread evenly over those that are alike, each from the state that the plan gives it, with random
tokens where it has revealed some.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from bench.baselines import ReleasedRun
from edlm_engine import Engine, GenerationConfig, ops
from edlm_engine.execution import graphs
from edlm_engine.models.denoiser import device_of
from edlm_engine.sampling.canvas import sequence_seeds
from edlm_engine.sampling.plan import RevealPlan, plan_reveals
from edlm_engine.sampling.run import Run
from edlm_engine.sampling.steps import Step, steps_of

ENERGY, PLAIN, CACHED = "energy step", "plain step", "cached step"


@dataclass(frozen=True)
class Kind:
    """Like steps of a run."""

    members: Mapping[int, np.ndarray]  # step: the step number of each sequence [B], to start from
    count: float  # how many there are
    step: Callable[[int, Tensor], None]  # step(member, xt) runs one


def plan_of(engine: Engine, batch: int, config: GenerationConfig) -> RevealPlan:
    """The plan of `engine.generate(batch, config=config, seed=0)`."""
    return plan_reveals(
        sequence_seeds(0, batch),
        torch.ones(batch, config.length or engine.denoiser.length, dtype=torch.bool),
        engine.schedule,
        config.steps,
        config.energy_times if config.num_candidates > 1 else None,
    )


def engine_kinds(engine: Engine, plan: RevealPlan, config: GenerationConfig) -> dict[str, Kind]:
    """Iterations of the engine, members being those in which all sequences agree.

    Each sequence runs its own steps, so a step of one of B sequences counts as 1 / B: exact as far
    as the cost of an iteration grows linearly with its sequences.
    """
    step = _engine_step(engine, plan, config)
    energy = plan.uses_energy
    return {
        kind: Kind(
            {int(j): plan.numbers[:, j] for j in np.flatnonzero(steps.all(axis=0))},
            float(steps.sum() / len(steps)),
            step,
        )
        for kind, steps in {ENERGY: energy, PLAIN: (plan.numbers > 0) & ~energy}.items()
    }


def _engine_step(engine: Engine, plan: RevealPlan, config: GenerationConfig) -> Callable:
    batch, length = plan.revealed_in.shape
    blank = torch.full((batch, length), engine.denoiser.mask_id)
    counts = plan.nfe, plan.energy_steps, int(plan.energy_steps.max(initial=0))
    seeds = sequence_seeds(0, batch)
    run = Run(engine.denoiser, engine.energy, config, blank, seeds, *counts)

    @functools.cache  # a generation makes the steps of many iterations at once
    def parts(j: int) -> list[Step]:
        return next(steps_of(plan, run.seeds, first=j, last=j + 1))

    def step(j: int, xt: Tensor) -> None:
        run.xt.copy_(xt)
        captured = graphs.using(engine.model_graphs())
        with torch.inference_mode(), ops.one_head_workspace(), captured:
            for part in parts(j):
                run.advance(part)

    return step


def released_kinds(
    denoiser, ar, plan: RevealPlan, steps: int, *, num_candidates: int, window: float
) -> dict[str, Kind]:
    """Steps 1..N (`steps`) of the released algorithm where it reveals what the plan reveals.

    It has one cache for the whole batch: a step takes its probabilities from there unless the step
    before it revealed something in any sequence.
    """
    times = plan.schedule.times(steps).numpy()
    numbers = np.arange(1, steps + 1)
    runs_models = (numbers == 1) | np.isin(numbers - 1, plan.revealed_in)
    energy = (num_candidates > 1) & (times[:-1] >= 1 - window)
    options = {"num_candidates": num_candidates, "window": window}
    kinds = {ENERGY: runs_models & energy, PLAIN: runs_models & ~energy, CACHED: ~runs_models}
    return {
        kind: Kind(
            {int(i): np.full(len(plan.revealed_in), i) for i in numbers[is_kind]},
            float(is_kind.sum()),
            _released_step(denoiser, ar, times, kind == CACHED, options),
        )
        for kind, is_kind in kinds.items()
    }


def _released_step(denoiser, ar, times: np.ndarray, from_cache: bool, options: dict) -> Callable:
    weight, vocab = next(denoiser.parameters()), denoiser.vocab_size

    def step(i: int, xt: Tensor) -> None:
        run = ReleasedRun(denoiser, ar, xt, **options)
        if from_cache:  # of any values: no cost depends on them
            run.cached = weight.new_full((), 1 / vocab).expand(*xt.shape, vocab)
        run.step(float(times[i - 1]), float(times[i]))

    return step


def states(kind: Kind, plan: RevealPlan, engine: Engine, size: int) -> list[tuple[int, Tensor]]:
    """Members and the tokens they start from, the middles of ``size`` equal parts of the kind."""
    members = list(kind.members)
    size = min(size, len(members))
    chosen = [members[int((n + 0.5) * len(members) / size)] for n in range(size)]
    return [(member, _state_before(plan, kind.members[member], engine)) for member in chosen]


def _state_before(plan: RevealPlan, numbers: np.ndarray, engine: Engine) -> Tensor:
    """xt [B, L] before each sequence's step ``numbers`` [B]: random tokens where it has any."""
    denoiser = engine.denoiser
    generator = torch.Generator().manual_seed(0)
    tokens = torch.randint(0, denoiser.vocab_size - 1, plan.revealed_in.shape, generator=generator)
    tokens += tokens >= denoiser.mask_id
    hidden = torch.from_numpy(plan.revealed_in >= numbers[:, None])
    return tokens.masked_fill(hidden, denoiser.mask_id).to(device_of(denoiser))
