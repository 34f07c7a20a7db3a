"""An energy that learns to tell data from what a frozen denoiser draws (EDLM-NCE, equation 10)."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edlm_engine import ops
from edlm_engine.checkpoints.bundle import load_for_sampling, load_pair
from edlm_engine.checkpoints.native import save_model
from edlm_engine.checkpoints.registry import Request
from edlm_engine.checkpoints.tokenizer import Tokenizer
from edlm_engine.models import DiT, EnergyConfig, EnergyTransformer
from edlm_engine.training.config import EnergyTrainConfig, require


class Contrast(nn.Module):
    """The energy in training, and the frozen denoiser that draws what it is to tell from data.

    The denoiser stays in eval mode, and draws by the engine's own op with the arithmetic of the
    engine, so that the energy learns the very law that it will correct. `redraws`: see `nce_loss`.
    """

    def __init__(
        self, denoiser: Any, energy: EnergyTransformer, negatives: int, redraws: int = 0
    ) -> None:
        super().__init__()
        self.denoiser = denoiser.requires_grad_(False)
        self.energy = energy
        self.negatives, self.redraws = negatives, redraws
        self.train()

    def train(self, mode: bool = True) -> Contrast:
        super().train(mode)
        self.denoiser.eval()
        return self

    @property
    def mask_id(self) -> int:
        return self.denoiser.mask_id

    def energies(self, x0: Tensor, xt: Tensor, sigma: Tensor) -> Tensor:
        return self.energy.energies(x0, xt, sigma)

    @torch.no_grad()
    def draw(self, xt: Tensor, sigma: Tensor, seeds: Tensor, count: int | None = None) -> Tensor:
        """`count` candidates [B, n, L], by default `negatives`, of xt [B, L] at sigma [B].

        Candidate j of a row is a pure function of its tokens, sigma and seed, and of j: `seeds` [B]
        int64, on the CPU.
        """
        masked, count = xt == self.mask_id, self.negatives if count is None else count
        keys = ops.stream_keys(seeds[:, None], torch.arange(xt.shape[1])).to(xt.device)[masked]
        options: dict[str, Any] = {"forbidden_id": self.mask_id}
        with torch.autocast(xt.device.type, enabled=False):
            if hasattr(self.denoiser, "hidden"):
                weight, bias = self.denoiser.head
                hidden = self.denoiser.hidden(xt, sigma)[masked]
                options["bias"] = bias
                drawn, _ = ops.head_sample_candidates(hidden, weight, keys, count, **options)
            else:
                logits = self.denoiser.logits(xt, sigma)[masked]
                drawn, _ = ops.sample_candidates(logits, keys, count, **options)
        x0 = xt[:, None].repeat(1, count, 1)
        rows, places = masked.nonzero(as_tuple=True)
        x0[rows, :, places] = drawn
        return x0


def tokenizer(config: EnergyTrainConfig, texts: list[str]) -> Tokenizer:
    """The denoiser's own."""
    read = load_pair(config.denoiser, None, Request(device="meta")).tokenizer
    if read is None:
        raise ValueError(f"denoiser must have a tokenizer beside it, {config.denoiser} has none")
    return read


def build(config: EnergyTrainConfig, tokens: Tokenizer) -> Contrast:
    """The denoiser as the engine samples from it, and an energy with its weights or fresh ones."""
    denoiser = load_for_sampling(config.denoiser, energy=None).denoiser
    longest = denoiser.length
    require("length", config.length <= longest, f"<= {longest}, the denoiser's", config.length)
    torch.manual_seed(config.seed)
    energy = _like_the_denoiser(config) if config.hidden_dim is None else _fresh(config, denoiser)
    return Contrast(denoiser, energy, config.negatives, config.redraws)


def _like_the_denoiser(config: EnergyTrainConfig) -> EnergyTransformer:
    denoiser = load_pair(config.denoiser, None, Request()).denoiser
    if not isinstance(denoiser, DiT):
        raise ValueError(
            "hidden_dim must be given with a denoiser whose network an energy cannot start with, "
            f"got {type(denoiser).__name__}"
        )
    blocks, most = config.blocks, denoiser.config.n_blocks
    require("blocks", blocks is None or blocks <= most, f"<= {most}, the denoiser's", blocks)
    return EnergyTransformer.from_denoiser(
        denoiser.float(), blocks, length=config.length, dropout=config.dropout
    )


def _fresh(config: EnergyTrainConfig, denoiser: Any) -> EnergyTransformer:
    sizes: dict[str, Any] = {"n_blocks": config.blocks, "n_heads": config.heads}
    for name, value in sizes.items():
        require(name[2:], value is not None, "given with hidden_dim", value)
    sizes["hidden_dim"] = config.hidden_dim
    return EnergyTransformer(
        EnergyConfig(
            vocab_size=denoiser.vocab_size,
            mask_id=denoiser.mask_id,
            length=config.length,
            cond_dim=config.cond_dim,
            dropout=config.dropout,
            **sizes,
        )
    )


def save(model: Contrast, config: EnergyTrainConfig, out: Path) -> None:
    """The energy alone."""
    save_model(model.energy, out)
