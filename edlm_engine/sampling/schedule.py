"""Noise schedules: the probability that a position is masked, as a function of time."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LogLinearSchedule:
    """mask_prob(t) = t and sigma(t) = -log(1 - (1 - sigma_eps) t), the schedule of MDLM and EDLM.

    Times and mask probabilities are float64 tensors of any shape. Another schedule is any object
    with these four methods; it is used on the host only.
    """

    eps: float = 1e-5  # the last time, t_N
    sigma_eps: float = 1e-3  # keeps sigma(1) finite: 6.9

    def __post_init__(self):
        for name in ("eps", "sigma_eps"):
            if not 0 < getattr(self, name) < 1:
                raise ValueError(f"{name} must be in (0, 1), got {getattr(self, name)}")

    def times(self, steps: int) -> Tensor:
        """1 = t_0 > t_1 > ... > t_N = eps, evenly spaced: float64 [steps + 1]."""
        return torch.linspace(1, self.eps, steps + 1, dtype=torch.float64)

    def mask_prob(self, t: Tensor) -> Tensor:
        """Probability that a position is masked at time t; rises from 0 at t = 0 to 1 at t = 1."""
        return t

    def time_of(self, mask_prob: Tensor) -> Tensor:
        """The inverse of `mask_prob`."""
        return mask_prob

    def sigma(self, t: Tensor) -> Tensor:
        """Total noise at time t, the time input of the denoisers."""
        return -torch.log1p(-(1 - self.sigma_eps) * t)
