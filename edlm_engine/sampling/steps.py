"""The steps of a plan as the loop takes them: made and uploaded for many iterations at once."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import groupby, repeat
from operator import itemgetter
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from edlm_engine import ops
from edlm_engine.execution.upload import upload
from edlm_engine.sampling.plan import RevealPlan
from edlm_engine.sampling.purposes import CANDIDATES, RESAMPLE
from edlm_engine.sampling.schedule import LogLinearSchedule

# Positions, of all sequences, in the iterations that are made at once: some 20 MB.
BLOCK_POSITIONS = 1 << 18


class Pick(NamedTuple):
    """What an adaptive order may reveal in a step, and how much of it."""

    eligible: Tensor  # [n, L] bool
    quota: Tensor  # [n]


class Step(NamedTuple):
    """One iteration of the loop: one step of each of n sequences, each at its own time.

    The E sequences that use the energy come first; those that fill what is left at t_N without it,
    last. Places are flat in [n, L], ascending: sequences that use the energy draw at all their
    masked positions, the others only where they reveal. Those of sequence i begin at
    starts[i] - starts[0]. Tensors are on the device and int64 where nothing else is said.
    """

    rows: Tensor  # [n]: place in the batch
    sigmas: Tensor  # [n] float32: total noise at the sequence's time
    draws: Tensor  # [R] places
    draw_starts: Tensor  # [n + 1]
    draw_keys: Tensor  # [R]: random stream of each draw
    times: Tensor  # [E] float32
    reveals: Tensor  # [P] places that the first E sequences reveal
    reveal_starts: Tensor  # [E + 1]
    choice_keys: Tensor  # [E]: random stream of each choice among candidates
    columns: Tensor  # [E]: how many energy steps the sequence had before
    fill_draws: int  # how many of `draws`, the last ones, belong to the last sequences
    masked: np.ndarray  # [E, L] bool: where the first E sequences are masked; on the host
    rows_on_host: np.ndarray  # [n]
    numbers: Tensor  # [n]: of the steps
    hides: Tensor | None = None  # places to mask before anything else
    pick: Pick | None = None  # of an adaptive order; then no `reveals` are there


def steps_of(
    plan: RevealPlan,
    seeds: Tensor,
    *,
    one_by_one: bool = False,
    first: int = 0,
    last: int | None = None,
    first_block: int | None = None,
) -> Iterator[list[Step]]:
    """Iterations `first` to `last` (not included) of the sequences with seeds [B], on their device.

    Each is one step of all sequences that have one, or a step of each in turn. `first_block`: how
    many to make at first, twice as many the next time: for who may not want them all.
    """
    last = plan.iterations if last is None else last
    most = max(1, BLOCK_POSITIONS // max(1, plan.revealed_in.size))
    size = most if first_block is None else min(first_block, most)
    while first < last:
        yield from _block(plan, seeds, one_by_one, first, min(first + size, last))
        first, size = first + size, min(2 * size, most)


def _block(
    plan: RevealPlan, seeds: Tensor, one_by_one: bool, begin: int, end: int
) -> Iterator[list[Step]]:
    """Iterations `begin` to `end`."""
    iteration, rows, energy, fills = _in_order(plan, begin, end)
    revealed = plan.revealed(rows, iteration)
    masked = plan.masked(rows, iteration)
    taken = Taken(
        rows=rows,
        numbers=plan.numbers[rows, iteration],
        times=plan.times[rows, iteration],
        energy=energy,
        columns=plan.energy_index[rows, iteration],
        fills=fills,
        drawn=revealed | (energy[:, None] & masked),
        revealed=revealed,
        hidden=None if plan.hidden is None else masked,
    )
    heads = np.arange(len(rows)) if one_by_one else np.unique(iteration, return_index=True)[1]
    steps = made(taken, heads, seeds, plan.schedule)
    for _, group in groupby(zip(iteration[heads].tolist(), steps, strict=True), itemgetter(0)):
        yield [step for _, step in group]


class Taken(NamedTuple):
    """The steps that m sequences take, on the host; those with the energy first in each `Step`."""

    rows: np.ndarray  # [m]
    numbers: np.ndarray  # [m]
    times: np.ndarray  # [m]
    energy: np.ndarray  # [m] bool
    columns: np.ndarray  # [m]: how many energy steps the sequence had before
    fills: np.ndarray  # [m] bool
    drawn: np.ndarray  # [m, L] bool
    revealed: np.ndarray  # [m, L] bool
    hidden: np.ndarray | None  # [m, L] bool: what is to be masked first


def made(
    taken: Taken, heads: np.ndarray, seeds: Tensor, schedule: LogLinearSchedule
) -> Iterator[Step]:
    """Steps on the device of `seeds` [B], each of the sequences from one of `heads` to the next."""
    rows, energy, drawn = taken.rows, taken.energy, taken.drawn
    chosen = taken.revealed & energy[:, None]
    hidden = np.zeros_like(drawn[:, :0]) if taken.hidden is None else taken.hidden
    draws, reveals, hides = (each.sum(axis=1) for each in (drawn, chosen, hidden))
    length = drawn.shape[1]
    n, e, r, p, h, fill_draws = (
        np.add.reduceat(counts, heads).tolist()
        for counts in (
            np.ones_like(rows),
            energy.astype(int),
            draws,
            reveals,
            hides,
            draws * taken.fills,
        )
    )
    first_place = np.repeat(heads, n) * length  # of the row's step, where a block is [rows, L]

    on_host = (
        rows,
        taken.numbers,
        schedule.sigma(torch.from_numpy(taken.times)).double().numpy(),
        first_place,
        np.flatnonzero(drawn),
        _starts(draws),
        np.flatnonzero(energy),
        taken.times[energy],
        taken.columns[energy],
        np.flatnonzero(chosen) - np.repeat(first_place, reveals),
        _starts(reveals[energy]),
        np.flatnonzero(hidden) - np.repeat(first_place, hides),
    )
    here = upload(seeds.device, *map(torch.from_numpy, on_host))
    rows_, numbers_, sigmas, first_place_, places, draw_starts = here[:6]
    with_energy, energy_times, columns, reveals_, reveal_starts, hides_ = here[6:]
    owner, position, seeds = places // length, places % length, seeds[rows_]
    draw_keys = ops.stream_keys(seeds[owner], CANDIDATES, numbers_[owner], position)
    choice_keys = ops.stream_keys(seeds[with_energy], RESAMPLE, numbers_[with_energy])

    return map(
        Step,
        rows_.split(n),
        sigmas.float().split(n),
        (places - first_place_[owner]).split(r),
        _overlapping(draw_starts, n),
        draw_keys.split(r),
        energy_times.float().split(e),
        reveals_.split(p),
        _overlapping(reveal_starts, e),
        choice_keys.split(e),
        columns.split(e),
        fill_draws,
        (drawn[head : head + some] for head, some in zip(heads.tolist(), e, strict=True)),
        (rows[head : head + count] for head, count in zip(heads.tolist(), n, strict=True)),
        numbers_.split(n),
        repeat(None) if taken.hidden is None else hides_.split(h),
    )


def _in_order(plan: RevealPlan, begin: int, end: int) -> tuple[np.ndarray, ...]:
    """Iteration, place in the batch, and whether with energy or a fill, in the order of steps."""
    iteration, rows = np.nonzero(plan.numbers[:, begin:end].T)
    iteration += begin
    energy = plan.uses_energy[rows, iteration]
    fills = plan.fills[rows, iteration] & ~energy
    order = np.lexsort((fills.astype(int) - energy, iteration))
    return iteration[order], rows[order], energy[order], fills[order]


def _starts(sizes: np.ndarray) -> np.ndarray:
    """[n + 1]: where each of n parts begins, and where the last one ends."""
    return np.concatenate([[0], np.cumsum(sizes)])


def _overlapping(starts: Tensor, sizes: list[int]) -> Iterator[Tensor]:
    """Of `starts`, those of each step with the end of its last part."""
    begin = 0
    for size in sizes:
        yield starts[begin : begin + size + 1]
        begin += size
