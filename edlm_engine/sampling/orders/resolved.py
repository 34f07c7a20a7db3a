"""What one call of the AR model settles: drafts accepted from the left, and the one drawn in place
of the first refused (with `correction="speculative"` only).

In the window of the energy a step makes one call of the AR model and reveals the positions that are
the AR model's own then, at least one. Outside, the positions that are left are revealed by the
denoiser from the left, in equal parts over the steps that are left of `steps`. The number of steps
depends on the text. With the whole window the law is that of the AR model; a smaller one trades it
for fewer calls: `window=0.5` leaves the last half to the denoiser.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edlm_engine.sampling.orders.ranking import highest

NEEDS_STATISTICS, NEEDS_QUOTA = False, False


def scores(log_q: Tensor, statistics: Tensor | None) -> Tensor:
    """See `AdaptiveOrder.scores`: all alike, so that the leftmost come first."""
    return torch.zeros_like(log_q)


def pick(scores: Tensor, quota: Tensor, options: Any) -> Tensor:
    """See `AdaptiveOrder.pick`: the `quota` leftmost."""
    return highest(scores, quota)
