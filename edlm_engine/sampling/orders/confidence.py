"""The likeliest draws first: those of highest log-probability under the law drawn from (LLaDA).

Reveal-first does not hold: what a step reveals depends on what was drawn, so tokens are drawn at
every position that might be revealed and the host waits for the device once a step. The law of the
text is not that of the ancestral process.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from edlm_engine.sampling.orders.ranking import highest

NEEDS_STATISTICS, NEEDS_QUOTA = False, True


def scores(log_q: Tensor, statistics: Tensor | None) -> Tensor:
    """See `AdaptiveOrder.scores`: the log-probability of the token drawn."""
    return log_q


def pick(scores: Tensor, quota: Tensor, options: Any) -> Tensor:
    """See `AdaptiveOrder.pick`: the `quota` highest."""
    return highest(scores, quota)
