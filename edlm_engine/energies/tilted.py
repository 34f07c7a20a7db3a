"""Energies that aim at a model's own law times exp(-E)."""

from __future__ import annotations

from collections.abc import Callable

from edlm_engine.energies.protocol import AutoregressiveModel, Energy
from edlm_engine.energies.residual import ARResidualEnergy
from edlm_engine.energies.sums import SumEnergy


def tilted(*energies: Energy | Callable, model: AutoregressiveModel | None = None) -> SumEnergy:
    """The energy whose candidates aim at a model's law, tilted by `energies` without `log_q`.

    Without a model that is the denoiser's, p_theta(x0 | xt) exp(-E) / Z: the energies as they are.
    With a left-to-right `model` it is p_AR(x0) exp(-E) / Z, whatever the denoiser that proposes:
    their sum with its residual energy. E = -reward gives p exp(reward).
    """
    base = () if model is None else (ARResidualEnergy(model),)
    return SumEnergy(*base, *energies)
