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


def selection_gain(fixed: Tensor, free: Tensor, num_candidates: int) -> Tensor:
    """log of an unbiased estimate of p_K(x_A | xt) / p_theta(x_A | xt), float64 [...].

    p_K is the law of the tokens at the positions A of the candidate that a step keeps: one of K
    draws x0 ~ p_theta(. | xt), with probability in proportion to its weight w. Any of the K is it
    equally often, so

        p_K(x_A) = K Pr[the first is kept and has x_A] = p_theta(x_A) E[w_1 / mean(w_1 .. w_K)]

    with the first drawn given its tokens at A and the others freely. `fixed` [..., m] are
    log-weights of m draws of the former kind, `free` [..., n] of n of the latter; the mean goes
    over each of m with each of n runs of K - 1 neighbours. By Jensen's inequality, minus the result
    and minus log p_theta(x_A) is in expectation an upper bound of -log p_K(x_A), for every m, n and
    K, and tightens as m and n grow.

    At most log K. 0 for K = 1; -inf where all `fixed` are. Raises ValueError unless m >= 1 and
    n >= K - 1.
    """
    n = free.shape[-1]
    if num_candidates < 1 or n < max(1, num_candidates - 1) or fixed.shape[-1] < 1:
        raise ValueError(
            f"num_candidates must be in [1, {n + 1}] for {n} free weights, with a fixed one at "
            f"least, got {num_candidates} and {fixed.shape[-1]} fixed"
        )
    fixed, free = fixed.double()[..., :, None], free.double()
    if num_candidates == 1:
        whole = fixed
    else:
        runs = torch.arange(n)[:, None] + torch.arange(num_candidates - 1)
        others = free[..., (runs % n).to(free.device)].logsumexp(-1)
        whole = torch.logaddexp(fixed, others[..., None, :])
    ratio = (fixed - whole).where(fixed > -torch.inf, -torch.inf) + math.log(num_candidates)
    return ratio.flatten(-2).logsumexp(-1) - math.log(ratio.shape[-1] * ratio.shape[-2])
