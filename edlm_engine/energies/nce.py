"""The energy learned by noise-contrastive estimation (EDLM-NCE, equation 10)."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor

from edlm_engine.energies.residual import MAX_TOKENS
from edlm_engine.energies.sums import Summable
from edlm_engine.execution.graphs import call_model


class EnergyModel(Protocol):
    """What `NCEEnergy` asks of a network. It may be `capturable`, as a `Denoiser` may."""

    @property
    def mask_id(self) -> int: ...

    @property
    def vocab_size(self) -> int: ...

    @property
    def length(self) -> int: ...

    def energies(self, x0: Tensor, xt: Tensor, sigma: Tensor) -> Tensor:
        """x0 [b, K, L], xt [b, L], total noise sigma [b] -> energies [b, K]."""
        ...


class NCEEnergy(Summable):
    """EDLM-NCE: E is the network's output, -log p_data(x0 | xt) / p_theta(x0 | xt) once learned.

    Trained to tell data from the denoiser's own candidates by the loss
    softplus(E(data)) + softplus(-E(drawn)), it is low for data, and softmax(-E) among candidates
    aims at the data's joint law. It is learned against the denoiser at temperature 1 and over its
    whole vocabulary; at another temperature or top_p the weights tilt that law all the same, and
    `log_q` is not used.

    The network runs on at most `max_tokens` tokens of candidates per call (at least one candidate;
    padding for CUDA graphs adds at most an eighth), which bounds the memory of its activations; a
    row's energy depends on no other row. `sigma_eps` is that of the noise schedule, for a network
    with time conditioning: sigma = -log(1 - (1 - sigma_eps) t).
    """

    def __init__(
        self, model: EnergyModel, *, max_tokens: int = MAX_TOKENS, sigma_eps: float = 1e-3
    ):
        if not hasattr(model, "energies"):
            raise TypeError(f"model must have a method energies, got {type(model).__name__}")
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be >= 1, got {max_tokens}")
        if not 0 < sigma_eps < 1:
            raise ValueError(f"sigma_eps must be in (0, 1), got {sigma_eps}")
        self.model = model
        self.max_tokens = max_tokens
        self.sigma_eps = sigma_eps

    @property
    def mask_id(self) -> int:
        return self.model.mask_id

    @property
    def vocab_size(self) -> int:
        return self.model.vocab_size

    @property
    def length(self) -> int:
        return self.model.length

    def energy(self, x0: Tensor, xt: Tensor, log_q: Tensor, t: Tensor) -> Tensor:
        """See `Energy.energy`."""
        batch, candidates, length = x0.shape
        parts = max(1, self.max_tokens // max(1, length))
        rows, columns = max(1, parts // candidates), min(parts, candidates)
        sigma = -torch.log1p(-(1 - self.sigma_eps) * t)
        # A graph's output is overwritten by the next call: each part is copied to its place.
        energies = torch.empty(batch, candidates, device=x0.device)
        for b in range(0, batch, rows):
            for k in range(0, candidates, columns):
                part = slice(b, b + rows), slice(k, k + columns)
                given = x0[part], xt[part[0]], sigma[part[0]]
                energies[part] = call_model(self.model, "energies", *given)
        return energies

    __call__ = energy
