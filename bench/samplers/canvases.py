"""Texts with gaps: what is known of each sequence that a sampler completes."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from edlm_engine import ops
from edlm_engine.reference import uniform

GAPS = 211  # what a random stream is for, beside those of the engine


def gaps(length: int, share: float, count: int, numbers: list[int]) -> Tensor:
    """Where sequences are hidden, bool [n, length]: `count` gaps of equal length, `share` of all.

    The places are a function of a sequence's number alone. Each gap has known tokens to its right.
    """
    hidden = round(length * share)
    sizes = [hidden // count + (i < hidden % count) for i in range(count)]
    spare = length - hidden - count  # one known token behind each gap
    if hidden < count or spare < 0:
        raise ValueError(f"{count} gaps of {hidden} positions do not fit in {length}")
    keys = ops.stream_keys(GAPS, torch.tensor(numbers)[:, None], torch.arange(count))
    cuts = np.sort((uniform(keys) * (spare + 1)).long().numpy(), axis=1)
    where = torch.zeros(len(numbers), length, dtype=torch.bool)
    for row, cut in enumerate(cuts.tolist()):
        begin = 0
        for size, before, earlier in zip(sizes, cut, [0, *cut[:-1]], strict=True):
            begin += before - earlier
            where[row, begin : begin + size] = True
            begin += size + 1
    return where
