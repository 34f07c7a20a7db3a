"""Sums of energies: a product of experts, each raised to its weight."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edlm_engine.energies.protocol import Energy, energy_function
from edlm_engine.execution.returned import check_returned


class Summable:
    """Gives an energy `+` another energy and `*` a number: a `SumEnergy` each."""

    def __add__(self, other: Energy | Callable) -> SumEnergy:
        return SumEnergy(self, other)

    def __radd__(self, other: Any) -> Any:
        # What the built-in `sum` begins with.
        return self if isinstance(other, int) and other == 0 else SumEnergy(other, self)

    def __mul__(self, weight: float) -> SumEnergy:
        return SumEnergy(self, weights=(weight,))

    __rmul__ = __mul__


class SumEnergy(Summable):
    """E = sum over i of w_i E_i, of any energies; `weights` are 1 unless given.

    Candidates come from the denoiser, so those of each step aim at p_theta(x0 | xt) exp(-E) / Z. A
    residual energy is -log p_AR + log_q and log_q is that of p_theta; hence

    - sums of energies without `log_q` (rewards, constraints, classifiers, an NCE energy) tilt the
      denoiser: p_theta(x0 | xt) times exp(-w_i E_i) for each;
    - with one residual energy of weight 1 the denoiser cancels: p_AR(x0) times the others;
    - residual energies of weights w_i give p_theta to the power 1 - sum of w_i, times each p_i to
      the power w_i: with one of weight w, the geometric mixture of denoiser and AR model.

    `first_position` is that of the energies that name one, which must agree, since `log_q` begins
    there; `length` and `vocab_size` are the smallest of those named; `masked` is passed on. Sums
    are flat: the parts of a part are parts. The sum is taken in float64.

    Raises TypeError for what is no energy, and ValueError for weights that are not as many, not
    finite or 0, and for first positions that differ.
    """

    first_position: int
    length: int
    vocab_size: int

    def __init__(self, *energies: Any, weights: Sequence[float] | None = None):
        if not energies:
            raise ValueError("energies must be one at least, got none")
        given = [1.0] * len(energies) if weights is None else list(weights)
        if len(given) != len(energies):
            raise ValueError(f"weights must be {len(energies)}, one per energy, got {len(given)}")
        self.parts: tuple[Any, ...] = ()
        self.weights: tuple[float, ...] = ()
        for energy, weight in zip(energies, given, strict=True):
            if not (callable(energy) or hasattr(energy, "energy")):
                raise TypeError(f"energies must have a method energy, or be callable: {energy!r}")
            if isinstance(weight, bool) or not isinstance(weight, Real):
                raise TypeError(f"weights must be numbers, got {weight!r}")
            if not math.isfinite(weight) or weight == 0:
                raise ValueError(f"weights must be finite and not 0, got {weight}")
            parts, inner = (energy,), (1.0,)
            if isinstance(energy, SumEnergy):
                parts, inner = energy.parts, energy.weights
            self.parts += parts
            self.weights += tuple(float(weight) * each for each in inner)
        firsts = self._named("first_position")
        if len(set(firsts)) > 1:
            raise ValueError(f"energies must agree in first_position, got {sorted(set(firsts))}")
        # Set where named only: a sum says no more than its parts do.
        for name in ("first_position", "length", "vocab_size"):
            values = self._named(name)
            if values:
                setattr(self, name, min(values))

    @property
    def needs_grad(self) -> bool:
        return any(self._named("needs_grad"))

    @property
    def residual(self) -> float:
        """How many times `log_q` is in the sum."""
        pairs = zip(self.parts, self.weights, strict=True)
        return sum(weight * float(getattr(part, "residual", 0)) for part, weight in pairs)

    def energy(
        self,
        x0: Tensor,
        xt: Tensor,
        log_q: Tensor,
        t: Tensor,
        masked: np.ndarray | None = None,
    ) -> Tensor:
        """See `Energy.energy`. Without `masked` the parts are given None for it."""
        total = torch.zeros(log_q.shape, dtype=torch.float64, device=log_q.device)
        for part, weight in zip(self.parts, self.weights, strict=True):
            each = energy_function(part)(x0, xt, log_q, t, masked=masked)
            check_returned(f"the energy of {_name(part)}", each, log_q.shape, log_q.device)
            total = total + weight * each.double()
        return total.float()

    __call__ = energy

    def _named(self, name: str) -> list[Any]:
        return [getattr(part, name) for part in self.parts if hasattr(part, name)]


def _name(energy: object) -> str:
    return getattr(energy, "__name__", type(energy).__name__)
