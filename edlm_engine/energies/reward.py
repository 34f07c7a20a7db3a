"""A reward as an energy: text of high reward is likely."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from edlm_engine.energies.per_candidate import MAX_CANDIDATES, CandidateFunction, check_scale
from edlm_engine.energies.sums import Summable


class RewardEnergy(Summable):
    """E = -scale * reward(x0): candidates aim at p_theta(x0 | xt) exp(scale * reward) / Z.

    fn: gives n numbers, a tensor, an array or a list, for token ids [n, L] (`on="tokens"`) or n
        texts decoded by `tokenizer` (`on="text"`); each of its own candidate alone. -inf makes one
        impossible. It is given whole candidates, known tokens included.

    `log_q` is not used. For p_AR(x0) exp(scale * reward) add a residual energy (`tilted`).
    Raises ValueError for another number of rewards, and on the CPU for NaN and +inf.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        scale: float = 1.0,
        on: Literal["tokens", "text"] = "tokens",
        tokenizer: Any = None,
        *,
        max_candidates: int = MAX_CANDIDATES,
    ):
        self.scale = check_scale(scale)
        self.reward = CandidateFunction(fn, on, tokenizer, max_candidates)

    def energy(self, x0: Tensor, xt: Tensor, log_q: Tensor, t: Tensor) -> Tensor:
        """See `Energy.energy`."""
        reward = self.reward(x0)
        if reward.shape != log_q.shape or reward.is_complex():
            wanted = f"numbers [{log_q.numel()}]"
            raise ValueError(f"fn must return {wanted}, one per candidate, got {_shown(reward)}")
        if reward.device.type == "cpu" and not (reward < torch.inf).all():
            worst = reward[~(reward < torch.inf)][0].item()
            raise ValueError(f"fn must return numbers below +inf, got {worst}")
        return (-self.scale * reward.double()).float()

    __call__ = energy


def _shown(values: Tensor) -> str:
    kind = str(values.dtype).removeprefix("torch.")
    return f"{kind} {[values.shape[:2].numel(), *values.shape[2:]]}"
