"""Positions by how sure their draws are."""

import torch
from torch import Tensor


def ranks(scores: Tensor) -> Tensor:
    """[n, L] int64: the place of each position by falling score, from 0; the leftmost of equals
    first."""
    order = scores.sort(dim=1, descending=True, stable=True).indices
    places = torch.arange(scores.shape[1], device=scores.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)


def highest(scores: Tensor, quota: Tensor) -> Tensor:
    """[n, L] bool: the `quota` [n] highest of each row, of those above -inf."""
    return (ranks(scores) < quota[:, None]) & (scores > -torch.inf)
