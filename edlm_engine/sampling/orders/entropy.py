"""The positions of lowest entropy first (Dream's `entropy`).

Reveal-first does not hold, as in `confidence`.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from edlm_engine.sampling.orders.ranking import highest

NEEDS_STATISTICS, NEEDS_QUOTA = True, True


def scores(log_q: Tensor, statistics: Tensor | None) -> Tensor:
    """See `AdaptiveOrder.scores`: minus the entropy of the law, whatever was drawn."""
    assert statistics is not None
    return -statistics[:, 0]


def pick(scores: Tensor, quota: Tensor, options: Any) -> Tensor:
    """See `AdaptiveOrder.pick`: the `quota` highest."""
    return highest(scores, quota)
