"""A denoiser's marginals at chosen positions: draws from them, and log-probabilities of tokens.

The head runs at the chosen positions only.
"""

from __future__ import annotations

from copy import copy
from typing import Any

import torch
from torch import Tensor

from edlm_engine import ops
from edlm_engine.sampling.run import evaluate


class Marginals:
    """p_theta(x0_l | xt) at the R places of xt [G, L], flat and ascending, that are asked for.

    xt: noisy tokens, on the denoiser's device. sigma [G] float32: total noise. places [R] int64.
    """

    def __init__(
        self,
        denoiser: Any,
        xt: Tensor,
        sigma: Tensor,
        places: Tensor,
        *,
        temperature: float = 1.0,
    ) -> None:
        self._values = evaluate(denoiser, xt, sigma).flatten(0, 1).index_select(0, places)
        self._head = denoiser.head if hasattr(denoiser, "hidden") else None
        self._options = {"forbidden_id": denoiser.mask_id, "temperature": temperature}

    def at(self, which: Tensor) -> Marginals:
        """Those of some of the R places, by their indices."""
        part = copy(self)
        part._values = self._values.index_select(0, which)
        return part

    def sample(self, keys: Tensor, num: int) -> tuple[Tensor, Tensor]:
        """`num` independent draws at every place, from streams keys [R]: tokens and their
        log-probabilities, both [R, num]."""
        if self._head is None:
            return ops.sample_candidates(self._values, keys, num, **self._options)
        weight, bias = self._head
        return ops.head_sample_candidates(
            self._values, weight, keys, num, bias=bias, **self._options
        )

    def log_probs(self, targets: Tensor) -> Tensor:
        """log p_theta of targets [R] int64: [R] float64; -inf for one that is never drawn."""
        if self._head is None:
            return ops.token_log_probs(self._values, targets, **self._options).double()
        weight, bias = self._head
        return ops.head_token_log_probs(
            self._values, weight, targets, bias=bias, **self._options
        ).double()


def sums(values: Tensor, places: Tensor, rows: int, length: int) -> Tensor:
    """values [R] added up over the rows of their places [R], flat in [rows, length]: [rows]."""
    total = torch.zeros(rows, dtype=torch.float64, device=values.device)
    return total.index_add_(0, places // length, values.double())
