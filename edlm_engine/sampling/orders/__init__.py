"""Which masked positions a step reveals: one file for each order.

Planned orders (`ancestral`, `leftmost`) know it before any model runs: what a step reveals does not
depend on tokens. Adaptive orders look at what was drawn. Each is a module with the attributes and
functions of `PlannedOrder` or `AdaptiveOrder`.
"""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

import numpy as np
from torch import Tensor

from edlm_engine.sampling.orders import (
    ancestral,
    confidence,
    entropy,
    entropy_bounded,
    leftmost,
    margin,
    resolved,
    threshold,
)
from edlm_engine.sampling.orders.timetable import Timetable
from edlm_engine.sampling.schedule import LogLinearSchedule


class Options(NamedTuple):
    """What a planned order needs of a configuration."""

    steps: int | None
    block_length: int | None
    remask: float


class PlannedOrder(Protocol):
    def timetable(
        self, seeds: Tensor, free: np.ndarray, schedule: LogLinearSchedule, options: Any
    ) -> Timetable:
        """When each free position [B, L] is revealed."""
        ...


class AdaptiveOrder(Protocol):
    NEEDS_STATISTICS: bool  # of the law that a position's token was drawn from
    NEEDS_QUOTA: bool  # reveals as many as the step's share of all positions

    def scores(self, log_q: Tensor, statistics: Tensor | None) -> Tensor:
        """How sure each of R draws is, [R]: the highest is revealed first.

        log_q: [R] of the drawn token. statistics: [R, 3], entropy in nats and the log-probabilities
        of the most and second most likely token.
        """
        ...

    def pick(self, scores: Tensor, quota: Tensor, options: Any) -> Tensor:
        """Which of the positions to reveal, [n, L] bool, at least one of each row.

        scores: [n, L] float32, -inf where a position may not be revealed now, at least one of each
            row is finite. quota: [n] int64.
        """
        ...


PLANNED: dict[str, PlannedOrder] = {"ancestral": ancestral, "leftmost": leftmost}
ADAPTIVE: dict[str, AdaptiveOrder] = {
    "confidence": confidence,
    "margin": margin,
    "entropy": entropy,
    "threshold": threshold,
    "entropy_bounded": entropy_bounded,
    "resolved": resolved,
}
