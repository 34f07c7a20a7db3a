"""Bounds on the log-partition function of an energy-corrected denoiser (EDLM, Theorem 1)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def log_partition_bounds(log_weights: Tensor) -> tuple[Tensor, Tensor]:
    """Lower and upper estimates of log Z from n proposal samples, log_weights [..., n], n >= 2.

    With T_n = log((1/n) sum_j w_j) and T_{n-1} its average over the n leave-one-out subsets,

        lower = T_n,    upper = (2n - 1) T_n - 2 (n - 1) T_{n-1},

    both float64 [...]. Their expectations bracket log Z for n large enough (asymptotically only;
    with weights dominated by one sample neither side is trustworthy). lower <= upper always. A
    weight of -inf is allowed; if only one is finite, upper is +inf. Rows that hold NaN, +inf or
    nothing but -inf give NaN. Raises ValueError for n < 2.
    """
    if log_weights.dim() < 1 or log_weights.shape[-1] < 2:
        raise ValueError(
            f"log_weights must have shape [..., n] with n >= 2, got {list(log_weights.shape)}"
        )
    n = log_weights.shape[-1]
    log_weights = log_weights.double()
    # log of the sum of all other weights: of those before plus those after, never a difference,
    # which would lose everything where one weight dominates.
    before = F.pad(log_weights.logcumsumexp(-1)[..., :-1], (1, 0), value=-torch.inf)
    after = F.pad(log_weights.flip(-1).logcumsumexp(-1).flip(-1)[..., 1:], (0, 1), value=-torch.inf)
    without_one = (torch.logaddexp(before, after) - math.log(n - 1)).mean(-1)
    lower = torch.logsumexp(log_weights, -1) - math.log(n)
    # Jensen's inequality, T_{n-1} <= T_n, must survive rounding.
    upper = lower + 2 * (n - 1) * (lower - torch.minimum(without_one, lower))
    good = torch.isfinite(lower)
    return lower.where(good, torch.nan), upper.where(good, torch.nan)
