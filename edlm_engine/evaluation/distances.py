"""How far samples are from a law that is known, or from exact draws of it.

Where all sequences can be counted, the total variation distance and the Kullback-Leibler divergence
are estimated as such. Both are too large for few samples, even for samples of the law itself:
`floor` is what exact draws of the same number would give on average, to be set beside.

Where they cannot, no divergence of the whole law is estimated. What is estimated instead is said by
the names: a mean log-probability under the law, which may be right for a wrong law (KL(s || p) is
the negative entropy of s less this mean, and the entropy of s is not known); and total variation
distances of images of the samples (a number or a few tokens of each), none of which can be greater
than that of the whole law: lower bounds of it, but for the floor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from edlm_engine.evaluation.judge import standard_error


@dataclass(frozen=True)
class Distance:
    """An estimate from n samples, its standard error, and the mean estimate of n exact draws where
    a formula gives it.

    Standard errors are of the first order (the delta method).
    """

    value: float
    stderr: float
    floor: float = math.nan

    @property
    def excess(self) -> float:
        """The estimate less its floor: the distance, but for what is left of its bias."""
        return self.value - self.floor


def total_variation(codes: Tensor, law: Tensor) -> Distance:
    """Half the sum of |share of samples - p|, of samples by number [n] and their law [M].

    The floor is exact, from the mean deviation of binomial counts.
    """
    share, law = _shares(codes, len(law)), law.double()
    more = share > law
    # The sum over x of (share - p)+: a mean over samples of whether theirs is too often there.
    each = more[codes].double()
    value = each.mean().item() - law[more].sum().item()
    return Distance(value, standard_error(each), 0.5 * _mean_deviation(law, len(codes)))


def kullback_leibler(codes: Tensor, law: Tensor) -> Distance:
    """The mean of log(share / p) over samples [n], the plug-in estimate of KL(samples || law [M]).

    The floor is that of the chi-square approximation, (M' - 1) / 2n for the M' possible sequences
    with np >= 1/2; too large where many are rarer.
    """
    share, law = _shares(codes, len(law)), law.double()
    each = (share[codes] / law[codes]).log()
    possible = int((law * len(codes) >= 0.5).sum())
    floor = max(possible - 1, 0) / (2 * len(codes))
    return Distance(each.mean().item(), standard_error(each), floor)


def numbers_of(tokens: Tensor, places: Tensor, vocab_size: int) -> Tensor:
    """Samples [n, L] as numbers [n]: the tokens at `places` (bool [L]) as digits, in their order,
    as `HiddenMarkov.enumerate` counts."""
    number = torch.zeros(len(tokens), dtype=torch.int64)
    for digit in tokens[:, places].unbind(1):
        number = number * vocab_size + digit
    return number


def pair_shares(tokens: Tensor, counted: Tensor, lag: int, vocab_size: int) -> Tensor:
    """Of each sample [n, L] the shares of the pairs (x_l, x_l+lag) among those of which one at
    least is `counted` (bool [n, L]): [n, V * V] float64. Lag 0: of its tokens, (v, v)."""
    length = tokens.shape[1] - lag
    where = counted[:, :length] | counted[:, lag:]
    numbers = tokens[:, :length] * vocab_size + tokens[:, lag:]
    numbers = numbers + torch.arange(len(tokens))[:, None] * vocab_size**2
    counts = torch.bincount(numbers[where], minlength=len(tokens) * vocab_size**2)
    return counts.view(len(tokens), -1) / where.sum(1, keepdim=True).double()


def share_variation(shares: Tensor, law: Tensor) -> Distance:
    """Half the sum of |mean share - p|, of the shares of each sample [n, M] and their mean under
    the law [M] (such as that of many exact draws)."""
    more = shares.mean(0) > law
    each = shares[:, more].sum(1)
    return Distance(each.mean().item() - law[more].sum().item(), standard_error(each))


def largest_step(values: Tensor, exact: Tensor) -> float:
    """The Kolmogorov-Smirnov distance of two samples of numbers [n], [m]."""
    at = torch.cat([values, exact]).sort().values
    mine = torch.searchsorted(values.sort().values, at, right=True) / len(values)
    theirs = torch.searchsorted(exact.sort().values, at, right=True) / len(exact)
    return (mine - theirs).abs().max().item()


def _shares(codes: Tensor, size: int) -> Tensor:
    return torch.bincount(codes, minlength=size).double() / len(codes)


def _mean_deviation(law: Tensor, n: int) -> float:
    """Sum over x of E|count / n - p|, the count binomial(n, p): De Moivre's closed form.

    E|count - np| = 2 v C(n, v) p^v (1 - p)^(n - v + 1), with v the integer part of np, plus 1.
    """
    p = law[(law > 0) & (law < 1)]
    v = (n * p).floor() + 1
    log_choose = math.lgamma(n + 1) - torch.lgamma(v + 1) - torch.lgamma(n - v + 1)
    log_each = math.log(2) + v.log() + log_choose + v * p.log() + (n - v + 1) * torch.log1p(-p)
    return (log_each.exp().sum() / n).item()
