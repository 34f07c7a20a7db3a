"""Tokens that a denoiser must never draw, beside its mask: a head whose bias is -inf there."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def forbidding_bias(weight: Tensor, bias: Tensor | None, ids: Iterable[int]) -> Tensor:
    """The bias [V] of a head weight [V, D] with -inf at `ids`, in the dtype of the weight.

    Raises ValueError for ids outside the vocabulary, and for ids that leave nothing to draw.
    """
    ids = sorted(set(ids))
    vocab_size = len(weight)
    if ids and not 0 <= ids[0] <= ids[-1] < vocab_size:
        raise ValueError(f"tokens must be in [0, {vocab_size}), got {ids[0]} to {ids[-1]}")
    if len(ids) >= vocab_size:
        raise ValueError(f"no token of {vocab_size} would be left to draw")
    made = torch.zeros_like(weight[:, 0]) if bias is None else bias.detach().clone()
    made[torch.tensor(ids, dtype=torch.int64, device=made.device)] = -torch.inf
    return made
