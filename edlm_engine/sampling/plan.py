"""The reveal plan: which positions each step reveals, decided before any model runs.

What a step reveals in a planned order does not depend on the tokens, so the whole schedule is fixed
at the start. Everything here lives on the host: the loop that follows a plan knows the number of
model calls and every shape beforehand, and never waits for the device.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from edlm_engine.sampling.orders import PLANNED, Options
from edlm_engine.sampling.schedule import LogLinearSchedule

# Steps of the s-th repetition of a plan are numbered from s SWEEP on: no plan has as many.
SWEEP = 1 << 32


@dataclass(frozen=True)
class RevealPlan:
    """Every sequence's own active steps, in order; J is the most that any sequence has.

    Steps that reveal nothing do not appear. Steps are numbered from 1; in discrete time N + 1 is
    the fill of what is left at t_N, in continuous time a step reveals one position.

    Where positions may be hidden again, `hidden` and `shown` tell what `revealed_in` cannot.
    """

    revealed_in: np.ndarray  # [B, L]: step number, 0 for a position that was never masked
    numbers: np.ndarray  # [B, J]: active step numbers, 0 after the last
    times: np.ndarray  # [B, J] float64
    uses_energy: np.ndarray  # [B, J] bool
    fills: np.ndarray  # [B, J] bool: what is left at t_N is filled
    energy_index: np.ndarray  # [B, J]: how many energy steps the sequence had before
    schedule: LogLinearSchedule
    hidden: np.ndarray | None = None  # [B, J, L] bool: masked before each step
    shown: np.ndarray | None = None  # [B, J, L] bool: revealed in it

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
        if self.hidden is not None:
            return self.hidden[rows, iteration]
        return self.revealed_in[rows] >= self.numbers[rows, iteration][:, None]

    def revealed(self, rows: np.ndarray, iteration: np.ndarray) -> np.ndarray:
        """[n, L] bool: what sequence rows[i] reveals in its step iteration[i]."""
        if self.shown is not None:
            return self.shown[rows, iteration]
        return self.revealed_in[rows] == self.numbers[rows, iteration][:, None]

    def rest(self, rows: np.ndarray, done: np.ndarray) -> RevealPlan:
        """What is left of sequences `rows` [n], of which each has taken its first done[i] steps."""
        columns = done[:, None] + np.arange(max(0, (self.nfe[rows] - done).max(initial=0)))
        inside = columns < self.iterations
        columns = np.where(inside, columns, 0)
        cut: dict[str, Any] = {}
        for name, values in self._by_step().items():
            kept = values[rows[:, None], columns]
            kept[~inside] = 0
            cut[name] = kept
        return replace(self, revealed_in=self.revealed_in[rows], **cut)

    def cut(self, rows: np.ndarray, taken: int) -> RevealPlan:
        """Without the steps after the first `taken` of the sequences `rows` [B] bool."""
        left = np.where(rows, np.minimum(taken, self.nfe), self.nfe)
        width = int(left.max(initial=0))
        gone = np.arange(width) >= left[:, None]
        cut: dict[str, Any] = {}
        for name, values in self._by_step().items():
            cut[name] = values[:, :width].copy()
            cut[name][gone] = 0
        return replace(self, **cut)

    def joined(self, other: RevealPlan) -> RevealPlan:
        """The sequences of this plan and then those of another, of the same length and order."""
        width = max(self.iterations, other.iterations)
        theirs = other._by_step()
        by_step: dict[str, Any] = {
            name: _stacked(ours, theirs[name], width) for name, ours in self._by_step().items()
        }
        revealed_in = np.concatenate([self.revealed_in, other.revealed_in])
        return replace(self, revealed_in=revealed_in, **by_step)

    def swept(self, sweeps: int) -> RevealPlan:
        """The plan and then `sweeps` times again, everything hidden first.

        In sweep s steps are numbered from s SWEEP on.
        """
        batch, length = self.revealed_in.shape
        times = sweeps + 1
        width = int(self.nfe.max(initial=0)) * times
        rows = np.arange(batch)
        whole = {
            "hidden": np.zeros((batch, self.iterations, length), dtype=bool),
            "shown": np.zeros((batch, self.iterations, length), dtype=bool),
        }
        for j in range(self.iterations):
            at = np.full(batch, j)
            active = (self.numbers[:, j] > 0)[:, None]
            whole["hidden"][:, j] = self.masked(rows, at) & active
            whole["shown"][:, j] = self.revealed(rows, at) & active
        result: dict[str, Any] = {}
        for name, value in (self._by_step() | whole).items():
            swept = np.zeros((batch, width, *value.shape[2:]), dtype=value.dtype)
            for b, count in enumerate(self.nfe):
                ahead = SWEEP if name == "numbers" else 0
                parts = [value[b, :count] + s * ahead for s in range(times)]
                swept[b, : count * times] = np.concatenate(parts) if count else 0
            result[name] = swept
        energy = result["uses_energy"]
        result["energy_index"] = np.cumsum(energy, axis=1) - energy
        return replace(self, **result)

    def _by_step(self) -> dict[str, np.ndarray]:
        """What is there for each step: [B, J, ...]."""
        return {
            name: value
            for name, value in vars(self).items()
            if name != "revealed_in" and isinstance(value, np.ndarray)
        }


def plan_reveals(
    seeds: Tensor,
    masked: Tensor,
    schedule: LogLinearSchedule,
    steps: int | None,
    energy_times: tuple[float, float] | None = None,
    energy_at_fill: bool = True,
    *,
    order: str = "ancestral",
    block_length: int | None = None,
    remask: float = 0.0,
) -> RevealPlan:
    """Plan a generation from seeds [B] int64 and the masked positions [B, L] bool, both on the CPU.

    `order` is one of `orders.PLANNED`, with `block_length` and `remask` as in `GenerationConfig`. A
    step uses the energy if its time, t_{i-1} of a transition to t_i, lies in `energy_times`
    (inclusive; None: never).
    """
    options = Options(steps, block_length, remask)
    table = PLANNED[order].timetable(seeds, masked.numpy(), schedule, options)
    shown = None if table.hidden is None else _shown(table.hidden)
    numbers = _active_steps(table.revealed_in, shown)
    at = np.maximum(numbers - 1, 0)
    times = _taken(table.times, at, np.float64)
    fills = _taken(table.fills, at, bool) & (numbers > 0)
    low, high = energy_times or (np.inf, -np.inf)
    uses_energy = (numbers > 0) & (low <= times) & (times <= high)
    if not energy_at_fill:
        uses_energy &= ~fills
    before: np.ndarray = np.cumsum(uses_energy, axis=1) - uses_energy
    plan = RevealPlan(table.revealed_in, numbers, times, uses_energy, fills, before, schedule)
    if table.hidden is None or shown is None:
        return plan
    in_use = (numbers > 0)[..., None]
    hidden, shown = (
        np.take_along_axis(x, at[..., None], axis=1) & in_use for x in (table.hidden, shown)
    )
    return replace(plan, hidden=hidden, shown=shown)


def _taken(by_number: np.ndarray, at: np.ndarray, dtype: type) -> np.ndarray:
    """[B, J] of [B, M], of which there may be none."""
    return np.take_along_axis(by_number, at, axis=1) if at.size else np.zeros(at.shape, dtype)


def _shown(hidden: np.ndarray) -> np.ndarray:
    """[B, M, L]: what each step reveals, which is all that is hidden in the last one."""
    after = np.concatenate([hidden[:, 1:], np.zeros_like(hidden[:, :1])], axis=1)
    return hidden & ~after


def _active_steps(revealed_in: np.ndarray, shown: np.ndarray | None) -> np.ndarray:
    """[B, J]: the numbers of the steps of each row that reveal something, ascending, then 0."""
    if shown is None:
        ordered = np.sort(revealed_in, axis=1)
        first = np.diff(ordered, axis=1, prepend=0) > 0
    else:
        first = np.any(shown, axis=2)
        ordered = np.broadcast_to(np.arange(1, first.shape[1] + 1), first.shape)
    counts = first.sum(axis=1)
    numbers = np.zeros((len(ordered), counts.max(initial=0)), dtype=np.int64)
    numbers[np.arange(numbers.shape[1]) < counts[:, None]] = ordered[first]
    return numbers


def _stacked(ours: np.ndarray, theirs: np.ndarray, width: int) -> np.ndarray:
    """[A, I, ...] over [B, J, ...] as [A + B, width, ...], with zeros up to `width` steps."""
    both = np.zeros((len(ours) + len(theirs), width, *ours.shape[2:]), dtype=ours.dtype)
    both[: len(ours), : ours.shape[1]] = ours
    both[len(ours) :, : theirs.shape[1]] = theirs
    return both
