"""The models inside a module of the MDLM family, as the engine's denoiser and energy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from edlm_engine.energies.residual import MAX_TOKENS, ARResidualEnergy
from edlm_engine.models.denoiser import device_of
from edlm_engine.sampling.edlm_config import edlm_carry_over

LEARNED = ("dit", "hf_dit")
"""What config.ebm_backbone calls the networks of the NCE energy."""


class ModuleDenoiser:
    """`module.forward(xt, sigma)`, the log-probabilities of the clean tokens, as a denoiser."""

    # A module may keep tensors from one call to the next, as rotary embeddings do; made in
    # inference mode they would spoil its training.
    needs_grad = True

    def __init__(self, module: Any):
        self.module = module

    @property
    def mask_id(self) -> int:
        return int(self.module.mask_index)

    @property
    def vocab_size(self) -> int:
        return int(self.module.vocab_size)

    @property
    def length(self) -> int:
        return int(self.module.config.model.length)

    @property
    def device(self) -> torch.device:
        own = getattr(self.module, "device", None)
        return device_of(self.module) if own is None else torch.device(own)

    def logits(self, xt: Tensor, sigma: Tensor) -> Tensor:
        values = self.module.forward(xt, sigma[:, None])
        return values.float() if values.dtype == torch.float64 else values


class HeadedDenoiser(ModuleDenoiser):
    """The same by what goes into the module's last product, which then runs only where it must."""

    def __init__(self, module: Any, last: nn.Linear):
        super().__init__(module)
        self.last = last

    @property
    def head(self) -> tuple[Tensor, Tensor | None]:
        return self.last.weight, self.last.bias

    def hidden(self, xt: Tensor, sigma: Tensor) -> Tensor:
        return input_of(self.last, lambda: self.module.forward(xt, sigma[:, None]))


def module_denoiser(module: Any) -> ModuleDenoiser:
    """With its head apart if its log-probabilities are the log-softmax of one last `nn.Linear`."""
    plain = ModuleDenoiser(module)
    xt = torch.full((1, plain.length), plain.mask_id, device=plain.device)
    sigma = torch.ones(1, device=plain.device)
    tokens = torch.arange(plain.vocab_size, device=plain.device) != plain.mask_id
    for last in _last_products(getattr(module, "backbone", module), plain.vocab_size):
        seen: list[Tensor] = []
        with last.register_forward_hook(lambda _, __, out, seen=seen: seen.append(out)):
            log_probs = plain.logits(xt, sigma)[..., tokens].float()
        if len(seen) != 1 or seen[0].shape != (*xt.shape, plain.vocab_size):
            continue
        expected = torch.log_softmax(seen[0][..., tokens].float(), dim=-1)
        rounding = 4 * torch.finfo(seen[0].dtype).eps * float(expected.abs().max())
        if (log_probs - expected).abs().max() <= 1e-3 + rounding:
            return HeadedDenoiser(module, last)
    return plain


def module_energy(module: Any) -> ModuleEnergy | ARResidualEnergy:
    """The energy of EDLM's module. Raises ValueError if it is of no known kind."""
    backbone = module.config.ebm_backbone
    if backbone != "ar" and backbone not in LEARNED:
        known = ", ".join(("ar", *LEARNED))
        raise ValueError(f"config.ebm_backbone must be one of {known}, got {backbone!r}")
    whole = ModuleEnergy(module, residual=backbone == "ar")
    if backbone != "ar":
        return whole
    length, vocab = whole.length, whole.vocab_size
    x0 = torch.arange(2 * length, device=device_of(module.ebm)).view(1, 2, length) % vocab
    x0[x0 == module.mask_index] = int(module.mask_index == 0)
    given = x0, torch.full_like(x0[:, 0], module.mask_index), torch.zeros(1, 2, device=x0.device)
    expected = whole.energy(*given, torch.ones(1, device=x0.device))
    for last in _last_products(module.ebm, vocab):
        try:
            ar = ARResidualEnergy(ModuleAR(module, last), carry_over=edlm_carry_over(module.config))
            found = ar.energy(*given, torch.ones(1, device=x0.device))
        except (RuntimeError, ValueError):
            continue
        # A module that rounds its logits to 16 bits is itself no closer than this.
        if (found - expected).abs().max() <= 0.03 * length + 1e-3 * expected.abs().max():
            return ar
    return whole


class ModuleEnergy:
    """`module.ebm_forward` as an energy, with its output layer and vocabulary in full.

    residual: an AR model, E = -log p_AR(x0) + log_q over positions from 1 on; else a learned
        energy, E itself. Whether the AR model counts known positions is config.sampling's
        `ar_carry_over`.
    time_as_sigma: give the network t for sigma, as the released sampler does; its training gave
        sigma. The same for a network without time conditioning.
    """

    needs_grad = True

    def __init__(self, module: Any, *, residual: bool, time_as_sigma: bool = False):
        self.module, self.residual, self.time_as_sigma = module, residual, time_as_sigma
        self.first_position = 1 if residual else 0

    @property
    def vocab_size(self) -> int:
        return int(self.module.vocab_size)

    @property
    def length(self) -> int:
        return int(self.module.config.model.length)

    def energy(self, x0: Tensor, xt: Tensor, log_q: Tensor, t: Tensor) -> Tensor:
        """See `Energy.energy`."""
        batch, candidates, length = x0.shape
        flat = x0.flatten(0, 1)
        noisy = xt.repeat_interleave(candidates, dim=0)
        sigma = t if self.time_as_sigma else self.module.noise(t)[0]
        sigma = sigma.repeat_interleave(candidates)
        at_once = max(1, MAX_TOKENS // length)
        parts = zip(flat.split(at_once), noisy.split(at_once), sigma.split(at_once), strict=True)
        energies = torch.cat([_ebm_forward(self.module, *part) for part in parts])
        energies = energies.float().view(batch, candidates)
        return energies + log_q if self.residual else energies

    __call__ = energy


class ModuleAR:
    """The AR model of EDLM's module, up to its last product: an `AutoregressiveModel`."""

    needs_grad = True
    first_position = 1

    def __init__(self, module: Any, last: nn.Linear):
        self.module, self.last = module, last

    @property
    def vocab_size(self) -> int:
        return int(self.module.vocab_size)

    @property
    def length(self) -> int:
        return int(self.module.config.model.length)

    @property
    def forbidden_id(self) -> int:
        return int(self.module.mask_index)

    @property
    def head(self) -> tuple[Tensor, Tensor | None]:
        return self.last.weight, self.last.bias

    def hidden(self, tokens: Tensor) -> Tensor:
        sigma = torch.zeros(len(tokens), device=tokens.device)
        after = input_of(self.last, lambda: _ebm_forward(self.module, tokens, tokens, sigma))
        # The module's row l predicts token l + 1; token 0 has none.
        return nn.functional.pad(after, (0, 0, 1, 0))


def _ebm_forward(module: Any, x0: Tensor, xt: Tensor, sigma: Tensor) -> Tensor:
    """[n]: the energies without the denoiser's part, whose log-probabilities are given as 0."""
    nothing = torch.zeros((), device=x0.device).expand(*x0.shape, int(module.vocab_size))
    energies = module.ebm_forward(
        xt, sigma, x0=x0, log_p_x0=nothing, attention_mask=torch.ones_like(x0)
    )
    return energies.flatten()


class _Reached(Exception):
    """Ends a forward pass where nothing behind it is wanted."""


def input_of(last: nn.Linear, run: Callable[[], object]) -> Tensor:
    """What reaches `last` when `run` runs, in the dtype of its weight; the rest does not run."""
    seen: list[Tensor] = []

    def stop(_: nn.Module, given: tuple[Tensor, ...]) -> None:
        seen.append(given[0])
        raise _Reached

    with last.register_forward_pre_hook(stop):
        try:
            run()
        except _Reached:
            return seen[0].to(last.weight.dtype)
    raise RuntimeError("the module no longer runs through the output layer that it had")


def _last_products(root: nn.Module, vocab_size: int) -> list[nn.Linear]:
    """The products onto the vocabulary, the last first."""
    linear = [x for x in root.modules() if isinstance(x, nn.Linear)]
    return [x for x in reversed(linear) if x.out_features == vocab_size]
