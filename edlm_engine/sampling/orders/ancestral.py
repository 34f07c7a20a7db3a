"""The exact ancestral process: each position is revealed at a time of its own.

In discrete time position l with uniform u is revealed in the step i with mask_prob(t_i) <= u <
mask_prob(t_{i-1}), or at the end if u < mask_prob(t_N). In continuous time (`steps=None`) positions
come one by one in the order of falling u, each at the time t with mask_prob(t) = u (first-hitting
sampler, Zheng et al. 2024). In blocks the process runs through one block after another, its time
that at which the share still masked is what it is there on average.

With `remask` = eta > 0, revealed positions are hidden again (ReMDM, Wang et al. 2025, with the cap
schedule): in the step from t to s a revealed position is masked with probability sigma =
min(eta, (1 - alpha_s) / alpha_t), alpha = 1 - mask_prob, and a masked one revealed with
(alpha_s - (1 - sigma) alpha_t) / (1 - alpha_t): the share masked at each time is as without.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from edlm_engine import ops
from edlm_engine.reference import uniform
from edlm_engine.sampling.orders.timetable import (
    Timetable,
    blocks_of,
    stacked,
    steps_of_blocks,
    times_by_count,
)
from edlm_engine.sampling.purposes import REMASK, REVEAL
from edlm_engine.sampling.schedule import LogLinearSchedule


def timetable(
    seeds: Tensor, free: np.ndarray, schedule: LogLinearSchedule, options: Any
) -> Timetable:
    """See `PlannedOrder.timetable`."""
    keys = ops.stream_keys(seeds, REVEAL)
    if options.remask > 0:
        return _remasked(seeds, free, schedule, options)
    if options.steps is None:
        return _one_by_one(keys, free, schedule, options.block_length)
    if options.block_length is not None:
        return _in_blocks(keys, free, schedule, options)
    times = schedule.times(options.steps)
    drawn = ops.reveal_steps(keys, free.shape[1], schedule.mask_prob(times)).numpy()
    shape = (len(free), options.steps + 1)
    fills = np.broadcast_to(np.arange(1, shape[1] + 1) == shape[1], shape)
    return Timetable(np.where(free, drawn, 0), np.broadcast_to(times.numpy(), shape), fills)


def _one_by_one(
    keys: Tensor, free: np.ndarray, schedule: LogLinearSchedule, block_length: int | None
) -> Timetable:
    """By rank of falling u, within blocks if there are any."""
    length = free.shape[1]
    u = uniform(ops.stream_keys(keys[:, None], torch.arange(length))).numpy()
    block = blocks_of(free, block_length)
    order = np.lexsort((-u, np.where(free, block, length)))
    ranks = np.empty_like(order)
    np.put_along_axis(ranks, order, np.arange(1, length + 1)[None], axis=1)
    if block_length is None:
        ordered = torch.from_numpy(np.take_along_axis(u, order, axis=1))
        times = schedule.time_of(ordered).numpy()
    else:
        each = [np.ones(count, dtype=np.int64) for count in free.sum(axis=1)]
        times = stacked([times_by_count(ones, schedule) for ones in each])
    return Timetable(np.where(free, ranks, 0), times, np.zeros(times.shape, dtype=bool))


def _in_blocks(
    keys: Tensor, free: np.ndarray, schedule: LogLinearSchedule, options: Any
) -> Timetable:
    block = blocks_of(free, options.block_length)
    revealed_in, all_times, all_fills = np.zeros(block.shape, dtype=np.int64), [], []
    drawn: dict[int, np.ndarray] = {}  # by the number of steps that a block has
    for b, row in enumerate(block):
        sizes = np.bincount(row[row >= 0])
        times, fills, before = [], [], 0
        for index, count in enumerate(steps_of_blocks(options.steps, sizes).tolist()):
            mask_probs = schedule.mask_prob(schedule.times(count))
            if count not in drawn:
                drawn[count] = ops.reveal_steps(keys, block.shape[1], mask_probs).numpy()
            here = row == index
            revealed_in[b, here] = before + drawn[count][b, here]
            left = (sizes[index + 1 :].sum() + mask_probs.numpy() * sizes[index]) / sizes.sum()
            times.append(schedule.time_of(torch.from_numpy(left)).numpy())
            fills.append(np.arange(count + 1) == count)
            before += count + 1
        all_times.append(np.concatenate([*times, np.zeros(0)]))
        all_fills.append(np.concatenate([*fills, np.zeros(0, dtype=bool)]))
    return Timetable(revealed_in, stacked(all_times), stacked(all_fills, bool))


def _remasked(
    seeds: Tensor, free: np.ndarray, schedule: LogLinearSchedule, options: Any
) -> Timetable:
    steps, (batch, length) = options.steps, free.shape
    times = schedule.times(steps)
    alpha = 1 - schedule.mask_prob(times).numpy()
    keys = ops.stream_keys(seeds, REMASK)
    hidden = np.zeros((batch, steps + 1, length), dtype=bool)  # before each step
    now = free.copy()
    for i in range(1, steps + 1):
        hidden[:, i - 1] = now
        u = uniform(ops.stream_keys(keys[:, None], i, torch.arange(length))).numpy()
        before, after = alpha[i - 1], alpha[i]
        sigma = min(options.remask, (1 - after) / before) if before > 0 else options.remask
        shown = (after - (1 - sigma) * before) / (1 - before)
        now = free & np.where(now, u >= shown, u < sigma)
    hidden[:, steps] = now
    shape = (batch, steps + 1)
    fills = np.broadcast_to(np.arange(1, steps + 2) == steps + 1, shape)
    last = np.where(free, steps + 1, 0)
    return Timetable(last, np.broadcast_to(times.numpy(), shape), fills, hidden)
