"""As many positions as keep the error of drawing them apart within a bound (EB-Sampler, Ben-Hamu et
al. 2025): by rising entropy, while the entropies of the set without its largest sum to at most
`entropy_bound` nats, one at least.

The number of steps depends on the text; `steps` is not used. Reveal-first does not hold, as in
`confidence`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

NEEDS_STATISTICS, NEEDS_QUOTA = True, False


def scores(log_q: Tensor, statistics: Tensor | None) -> Tensor:
    """See `AdaptiveOrder.scores`: minus the entropy of the law, whatever was drawn."""
    assert statistics is not None
    return -statistics[:, 0]


def pick(scores: Tensor, quota: Tensor, options: Any) -> Tensor:
    """See `AdaptiveOrder.pick`: the largest set within `options.entropy_bound`."""
    ordered, order = scores.sort(dim=1, descending=True, stable=True)
    entropy = torch.where(ordered > -torch.inf, -ordered, torch.inf).double()
    # Entropies rise, so the largest of a set is its last: the rest are those before it.
    before = entropy.cumsum(dim=1) - entropy
    within = (before <= options.entropy_bound) & (ordered > -torch.inf)
    return torch.zeros_like(within).scatter_(1, order, within)
