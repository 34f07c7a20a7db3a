"""The noisy windows of a likelihood bound: states of the sampler on its way to each window.

-log p(x) of a sampler that reveals sets A_1 .. A_J is at most the expectation, over its reveal
plans, of the sum of -log p(x_A | what was revealed before). One step of each plan is looked at,
chosen uniformly, and counts J times.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from edlm_engine import ops
from edlm_engine.reference import uniform
from edlm_engine.sampling.plan import plan_reveals
from edlm_engine.sampling.schedule import LogLinearSchedule

# What a random stream of an evaluation is for; the plans and draws below it are the sampler's own.
PLAN, PICK = 101, 102


class Noisy(NamedTuple):
    """G = windows * draws states of the reverse process; row w * draws + d is draw d of window w.

    All lie on the host. The positions of `revealed` are masked, and revealed in this step.
    """

    x0: Tensor  # [G, L] int64: the windows
    masked: np.ndarray  # [G, L] bool
    revealed: np.ndarray  # [G, L] bool
    times: Tensor  # [G] float64
    sigmas: Tensor  # [G] float32
    steps: Tensor  # [G]: how many steps the plan has, the weight of this one
    uses_energy: np.ndarray  # [G] bool
    seeds: Tensor  # [G] int64: of the row's candidates

    def part(self, begin: int, end: int) -> Noisy:
        fields: Any = (field[begin:end] for field in self)
        return Noisy(*fields)


def noisy_windows(
    windows: Tensor,
    schedule: LogLinearSchedule,
    steps: int | None,
    energy_times: tuple[float, float] | None,
    draws: int,
    seed: int,
    first: int = 0,
) -> Noisy:
    """`draws` states of each window [W, L], at steps stratified over its plans, one plan a draw.

    In continuous time (`steps` None) a step reveals one position and n, the number of masked
    positions, is uniform in 1..L; its time, given n, has the law it has in the sampler. Windows are
    independent of one another given the seed: a standard error over them is an honest one. The
    windows are numbered from `first`.
    """
    count, length = windows.shape
    window = (first + torch.arange(count)).repeat_interleave(draws)
    draw = torch.arange(draws).repeat(count)
    seeds = ops.stream_keys(seed, PLAN, window, draw)
    free = torch.ones(len(seeds), length, dtype=torch.bool)
    plan = plan_reveals(seeds, free, schedule, steps, energy_times)
    stratum = draw + uniform(ops.stream_keys(seed, PICK, window))
    # Of plans with different numbers of steps, each at its own stratum.
    pick = np.floor(plan.nfe * (stratum.numpy() / draws)).astype(np.int64)
    rows = np.arange(len(seeds))
    times = torch.from_numpy(plan.times[rows, pick])
    return Noisy(
        x0=windows.repeat_interleave(draws, 0),
        masked=plan.masked(rows, pick),
        revealed=plan.revealed(rows, pick),
        times=times,
        sigmas=schedule.sigma(times).float(),
        steps=torch.from_numpy(plan.nfe),
        uses_energy=plan.uses_energy[rows, pick],
        seeds=seeds,
    )
