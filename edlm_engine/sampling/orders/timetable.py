"""When each position is revealed, and how steps are shared out among blocks."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch

from edlm_engine.sampling.schedule import LogLinearSchedule


class Timetable(NamedTuple):
    """Steps are numbered from 1; M is the highest number of any sequence."""

    revealed_in: np.ndarray  # [B, L]: step number, 0 where nothing was free
    times: np.ndarray  # [B, M] float64: of each step
    fills: np.ndarray  # [B, M] bool: whether a step fills what the time steps have left
    hidden: np.ndarray | None = None  # [B, M, L]: where masked before each step, if not as above


def blocks_of(free: np.ndarray, block_length: int | None) -> np.ndarray:
    """[B, L]: the block of each free position, from 0 without gaps, -1 where nothing is free.

    Blocks are `block_length` positions wide and begin at the first free one; those without a free
    position do not count. Without a length there is one.
    """
    if block_length is None:
        return np.where(free, 0, -1)
    places = np.arange(free.shape[1]) - free.argmax(axis=1)[:, None]
    block = np.where(free, places // block_length, -1)
    result = np.full(block.shape, -1)
    for ours, row in zip(result, block, strict=True):
        used = np.unique(row[row >= 0])
        ours[row >= 0] = np.searchsorted(used, row[row >= 0])
    return result


def shared_out(total: int, parts: int) -> np.ndarray:
    """[parts]: `total` in parts that differ by one at most, larger ones first."""
    return total // parts + (np.arange(parts) < total % parts)


def steps_of_blocks(steps: int | None, sizes: np.ndarray) -> np.ndarray:
    """How many steps each block of sizes [n] gets: equal parts, one at least; None: one a token."""
    if steps is None or len(sizes) == 0:
        return sizes
    return np.maximum(shared_out(steps, len(sizes)), 1)


def quotas(block: np.ndarray, steps: int | None) -> np.ndarray:
    """[J]: how many positions each step reveals of a sequence, block [L] after block.

    As equal as may be within a block, more at first; steps that would reveal nothing are left out.
    """
    sizes = np.bincount(block[block >= 0])
    parts = [
        shared_out(size, min(size, count))
        for size, count in zip(sizes, steps_of_blocks(steps, sizes), strict=True)
    ]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.int64)


def times_by_count(quota: np.ndarray, schedule: LogLinearSchedule) -> np.ndarray:
    """[J]: times at which the share still masked is `mask_prob`, before each step."""
    left = quota.sum() - np.concatenate([[0], np.cumsum(quota)[:-1]])
    return schedule.time_of(torch.from_numpy(left / max(1, quota.sum()))).numpy()


def stacked(rows: list[np.ndarray], dtype: type = np.float64) -> np.ndarray:
    """[B, M]: rows of different lengths, padded with zeros."""
    width = max(map(len, rows), default=0)
    result: np.ndarray = np.zeros((len(rows), width), dtype=dtype)
    for ours, row in zip(result, rows, strict=True):
        ours[: len(row)] = row
    return result
