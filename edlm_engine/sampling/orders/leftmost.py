"""From left to right, as equally many a step as may be (`steps=None`: one)."""

from __future__ import annotations

from typing import Any

import numpy as np
from torch import Tensor

from edlm_engine.sampling.orders.timetable import (
    Timetable,
    blocks_of,
    quotas,
    stacked,
    times_by_count,
)
from edlm_engine.sampling.schedule import LogLinearSchedule


def timetable(
    seeds: Tensor, free: np.ndarray, schedule: LogLinearSchedule, options: Any
) -> Timetable:
    """See `PlannedOrder.timetable`. A step's time is that at which as much is masked on average."""
    del seeds  # nothing is random
    blocks = blocks_of(free, options.block_length)
    counts = [quotas(block, options.steps) for block in blocks]
    revealed_in = np.zeros(free.shape, dtype=np.int64)
    for ours, mine, count in zip(revealed_in, free, counts, strict=True):
        ours[mine] = np.repeat(np.arange(1, len(count) + 1), count)
    times = stacked([times_by_count(count, schedule) for count in counts])
    return Timetable(revealed_in, times, np.zeros(times.shape, dtype=bool))
