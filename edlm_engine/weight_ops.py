"""The op that draws from probabilities instead of logits; part of `edlm_engine.ops`."""

from __future__ import annotations

import torch
from torch import Tensor

import edlm_engine.op_rules  # noqa: F401  # loads the library


def sample_weights(weights: Tensor, keys: Tensor, num_candidates: int) -> tuple[Tensor, Tensor]:
    """Draw K tokens per row of ``weights [R, V]``, each with its share of the row's sum.

    Weights are probabilities or any numbers >= 0 in proportion to them, float32, bfloat16 or
    float16, with any row stride and a contiguous last dimension. Returns ``tokens [R, K]`` int64,
    independent and with replacement, and ``log_q [R, K]`` float32 = log(weight / sum). ``keys [R]``
    int64 name the rows' random streams: a draw is the inverse CDF in token order at the uniform
    that ``ops.sample_candidates`` has for the same key and candidate, so it takes the same token
    from the logarithms of the weights, up to rounding. The row is read once for any K, without an
    exponential. A token of weight 0 (or -0) is never drawn.

    A row that holds NaN, a negative number or +inf, that sums to more than the largest float32, or
    that holds nothing but 0, raises ``RuntimeError`` naming the row on CPU, and on CUDA yields
    token -1 and ``log_q`` NaN.
    """
    return torch.ops.edlm.sample_weights(weights, keys, num_candidates)
