"""All draws above a probability at once, the likeliest one at least (Fast-dLLM, Wu et al. 2025).

The number of steps depends on the text; `steps` is not used. Reveal-first does not hold, as in
`confidence`.
"""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor

from edlm_engine.sampling.orders.ranking import ranks

NEEDS_STATISTICS, NEEDS_QUOTA = False, False


def scores(log_q: Tensor, statistics: Tensor | None) -> Tensor:
    """See `AdaptiveOrder.scores`: the log-probability of the token drawn."""
    return log_q


def pick(scores: Tensor, quota: Tensor, options: Any) -> Tensor:
    """See `AdaptiveOrder.pick`: those of at least `options.threshold`, or the highest."""
    return (scores >= math.log(options.threshold)) | (ranks(scores) == 0)
