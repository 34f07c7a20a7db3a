"""`sample_weights` of `edlm_engine.reference`: draws from weights instead of logits."""

import torch
from torch import Tensor

from edlm_engine.reference_random import (
    SAMPLE_TAG,
    check,
    check_int64,
    inverse_cdf,
    random_bits,
    uniform,
)


def sample_weights(weights: Tensor, keys: Tensor, num_candidates: int) -> tuple[Tensor, Tensor]:
    """K independent draws from each row of weights [R, V] >= 0, each with its share of the sum.

    Returns tokens [R, K] int64 and log_q [R, K] float32, log(weight / sum). Candidate j of a row
    has the uniform of `sample_candidates` for the same key [R].
    """
    check(weights.dim() == 2, "weights must have shape [R, V]", list(weights.shape))
    check(weights.shape[1] >= 1, "weights must have V >= 1", weights.shape[1])
    check(num_candidates >= 1, "num_candidates must be >= 1", num_candidates)
    check_int64("keys", keys, weights.shape[0])
    weights = weights.double()
    total = weights.sum(dim=1, keepdim=True)
    # Not beyond float32, so that parts of a sum in float32 do not overflow.
    good = (weights >= 0).all(dim=1) & (total[:, 0] <= torch.finfo(torch.float32).max)
    for right, what in (
        (good, "holds NaN, a negative number or +inf, or sums to more than float32 holds"),
        (total[:, 0] > 0, "allows nothing: every entry is 0"),
    ):
        if not right.all():
            raise RuntimeError(f"weights row {int((~right).nonzero()[0])} {what}")
    draws = torch.arange(num_candidates, device=keys.device)
    tokens = inverse_cdf(weights, uniform(random_bits(keys[:, None], draws, 0, SAMPLE_TAG)))
    return tokens, torch.log(weights.gather(1, tokens) / total).float()
