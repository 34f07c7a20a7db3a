"""The reveal plan: which positions each step reveals, decided before any model runs.

What a step reveals does not depend on the tokens (absorbing diffusion), so one uniform per position
fixes the whole schedule. Everything here lives on the host: the loop that follows a plan knows the
number of model calls and every shape beforehand, and never waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edlm_engine import ops
from edlm_engine.reference import uniform
from edlm_engine.sampling.schedule import LogLinearSchedule

# What a random stream is for: the coordinate that follows the seed in its address.
REVEAL, CANDIDATES, RESAMPLE = range(3)


@dataclass(frozen=True)
class RevealPlan:
    """Every sequence's own active steps, in order; J is the most that any sequence has.

    Steps that reveal nothing do not appear. Steps are numbered from 1; in discrete time N + 1 is
    the fill of what is left at t_N, in continuous time a step reveals one position.
    """

    revealed_in: np.ndarray  # [B, L]: step number, 0 for a position that was never masked
    numbers: np.ndarray  # [B, J]: active step numbers, 0 after the last
    times: np.ndarray  # [B, J] float64
    uses_energy: np.ndarray  # [B, J] bool
    fills: np.ndarray  # [B, J] bool: what is left at t_N is filled
    energy_index: np.ndarray  # [B, J]: how many energy steps the sequence had before
    schedule: LogLinearSchedule

    @property
    def iterations(self) -> int:
        """J: iteration j is every sequence's own j-th active step."""
        return self.numbers.shape[1]

    @property
    def nfe(self) -> np.ndarray:
        """[B] denoiser evaluations of each sequence."""
        return (self.numbers > 0).sum(axis=1)

    @property
    def energy_steps(self) -> np.ndarray:
        """[B] steps of each sequence that use the energy."""
        return self.uses_energy.sum(axis=1)

    def masked(self, rows: np.ndarray, iteration: np.ndarray) -> np.ndarray:
        """[n, L] bool: where sequence rows[i] is masked before its step iteration[i]."""
        return self.revealed_in[rows] >= self.numbers[rows, iteration][:, None]

    def revealed(self, rows: np.ndarray, iteration: np.ndarray) -> np.ndarray:
        """[n, L] bool: what sequence rows[i] reveals in its step iteration[i]."""
        return self.revealed_in[rows] == self.numbers[rows, iteration][:, None]

    def rest(self, rows: np.ndarray, done: np.ndarray) -> RevealPlan:
        """What is left of sequences `rows` [n], of which each has taken its first done[i] steps."""
        columns = done[:, None] + np.arange(max(0, (self.nfe[rows] - done).max(initial=0)))
        inside = columns < self.iterations
        columns = np.where(inside, columns, 0)
        cut: dict[str, Any] = {
            name: np.where(inside, getattr(self, name)[rows[:, None], columns], 0)
            for name in ("numbers", "times", "energy_index")
        }
        flags: dict[str, Any] = {
            name: getattr(self, name)[rows[:, None], columns] & inside
            for name in ("uses_energy", "fills")
        }
        return replace(self, revealed_in=self.revealed_in[rows], **cut, **flags)

    def joined(self, other: RevealPlan) -> RevealPlan:
        """The sequences of this plan and then those of another, of the same length."""
        width = max(self.iterations, other.iterations)
        by_step: dict[str, Any] = {
            name: np.concatenate([_padded(getattr(plan, name), width) for plan in (self, other)])
            for name in ("numbers", "times", "uses_energy", "fills", "energy_index")
        }
        revealed_in = np.concatenate([self.revealed_in, other.revealed_in])
        return replace(self, revealed_in=revealed_in, **by_step)


def plan_reveals(
    seeds: Tensor,
    masked: Tensor,
    schedule: LogLinearSchedule,
    steps: int | None,
    energy_times: tuple[float, float] | None = None,
    energy_at_fill: bool = True,
) -> RevealPlan:
    """Plan a generation from seeds [B] int64 and the masked positions [B, L] bool, both on the CPU.

    Discrete time (`steps` = N) is the exact ancestral process: position l of a sequence with
    uniform u is revealed in the step i with mask_prob(t_i) <= u < mask_prob(t_{i-1}). Continuous
    time (`steps` = None) reveals positions one by one in the order of falling u, each at the time t
    with mask_prob(t) = u (first-hitting sampler, Zheng et al. 2024). A step uses the energy if its
    time, t_{i-1} of a transition to t_i, lies in `energy_times` (inclusive; None: never).
    """
    free = masked.numpy()
    keys = ops.stream_keys(seeds, REVEAL)
    if steps is None:
        revealed_in, step_times = _continuous(keys, free, schedule)
    else:
        times = schedule.times(steps)
        drawn = ops.reveal_steps(keys, free.shape[1], schedule.mask_prob(times)).numpy()
        revealed_in = np.where(free, drawn, 0)
        step_times = np.broadcast_to(times.numpy(), (len(free), steps + 1))
    numbers = _active_steps(revealed_in)
    active_times = np.take_along_axis(step_times, np.maximum(numbers - 1, 0), axis=1)
    fills = numbers == (-1 if steps is None else steps + 1)
    low, high = energy_times or (np.inf, -np.inf)
    uses_energy = (numbers > 0) & (low <= active_times) & (active_times <= high)
    if not energy_at_fill:
        uses_energy &= ~fills
    before: np.ndarray = np.cumsum(uses_energy, axis=1) - uses_energy
    return RevealPlan(revealed_in, numbers, active_times, uses_energy, fills, before, schedule)


def _continuous(keys: Tensor, masked: np.ndarray, schedule) -> tuple[np.ndarray, np.ndarray]:
    """Rank of each position by falling u, from 1, and the time of each rank: both [B, L]."""
    length = masked.shape[1]
    u = uniform(ops.stream_keys(keys[:, None], torch.arange(length))).numpy()
    order = np.argsort(np.where(masked, -u, np.inf), axis=1, kind="stable")
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(1, length + 1)[None], axis=1)
    times = schedule.time_of(torch.from_numpy(np.take_along_axis(u, order, axis=1))).numpy()
    return np.where(masked, ranks, 0), times


def _active_steps(revealed_in: np.ndarray) -> np.ndarray:
    """[B, J]: the distinct step numbers of each row, ascending, then 0."""
    ordered = np.sort(revealed_in, axis=1)
    first = np.diff(ordered, axis=1, prepend=0) > 0
    counts = first.sum(axis=1)
    numbers = np.zeros((len(ordered), counts.max(initial=0)), dtype=np.int64)
    numbers[np.arange(numbers.shape[1]) < counts[:, None]] = ordered[first]
    return numbers


def _padded(by_step: np.ndarray, width: int) -> np.ndarray:
    """[B, J] with zeros up to `width` columns."""
    return np.pad(by_step, ((0, 0), (0, width - by_step.shape[1])))
