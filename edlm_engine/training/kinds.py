"""The kinds of training run: what each builds, and how it is saved."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edlm_engine.checkpoints.files import TOKENIZER
from edlm_engine.checkpoints.native import Model, save_model
from edlm_engine.checkpoints.tokenizer import CHARACTERS, Tokenizer
from edlm_engine.models import ARConfig, AutoregressiveTransformer, DiT, DiTConfig
from edlm_engine.training import adapt, nce
from edlm_engine.training.config import AdaptConfig, EnergyTrainConfig, RunConfig, TrainConfig
from edlm_engine.training.corpus import text_stream


@dataclass(frozen=True)
class Kind:
    """What `Run` needs to know of a kind of run. Parameters that require no gradient are frozen.

    Each function takes the kind's own configuration, `config` here:
    tokenizer(config, texts), stream(config, texts, tokenizer), build(config, tokenizer),
    optimizers(model, config), save(model, config, folder) and before_step(model, config, step).
    `unit` is that of its loss.
    """

    config: type[RunConfig]
    tokenizer: Callable[..., Tokenizer]
    stream: Callable[..., Tensor]
    build: Callable[..., nn.Module]
    optimizers: Callable[..., list[torch.optim.Optimizer]]
    save: Callable[..., None]
    before_step: Callable[..., None] = lambda model, config, step: None
    unit: str = "nats per token"


def _tokenizer(config: TrainConfig, texts: list[str]) -> Tokenizer:
    kept = Path(config.out) / TOKENIZER
    if config.resume and kept.is_file():
        return Tokenizer.from_file(kept)
    if config.tokenizer == CHARACTERS:
        return Tokenizer.of_characters(texts)
    if config.tokenizer is not None:
        return Tokenizer.from_file(config.tokenizer)
    return Tokenizer.train(texts, config.vocab_size)


def _sizes(config: TrainConfig) -> dict[str, Any]:
    return {
        "length": config.length,
        "hidden_dim": config.hidden_dim,
        "n_blocks": config.blocks,
        "n_heads": config.heads,
        "dropout": config.dropout,
        "tie_word_embeddings": True,
    }


def _denoiser(config: TrainConfig, tokenizer: Tokenizer) -> DiT:
    """A fresh denoiser from `config.seed`. Its mask is one row after the vocabulary."""
    torch.manual_seed(config.seed)
    vocab = tokenizer.vocab_size
    sizes = _sizes(config)
    return DiT(DiTConfig(vocab_size=vocab + 1, mask_id=vocab, cond_dim=config.cond_dim, **sizes))


def _ar(config: TrainConfig, tokenizer: Tokenizer) -> AutoregressiveTransformer:
    """A fresh AR model from `config.seed`, with the tokenizer's BOS in front.

    Where that is no token of the text, it has a row of its own and is never predicted.
    """
    torch.manual_seed(config.seed)
    vocab, bos = tokenizer.vocab_size, tokenizer.bos_id
    sizes = {"vocab_size": max(vocab, bos + 1), "bos_id": bos, **_sizes(config)}
    sizes["forbidden_id"] = -1 if bos < vocab else bos
    return AutoregressiveTransformer(ARConfig(**sizes))


def _optimizers(
    model: nn.Module, config: TrainConfig | EnergyTrainConfig
) -> list[torch.optim.Optimizer]:
    decay: dict[str, Any] = {"lr": config.lr, "weight_decay": config.weight_decay}
    blocks = [p for name, p in model.named_parameters() if _is_block_matrix(name, p)]
    if config.optimizer == "adamw":
        return [torch.optim.AdamW(model.parameters(), betas=(0.9, 0.95), fused=True, **decay)]
    rest = [p for name, p in model.named_parameters() if not _is_block_matrix(name, p)]
    return [
        # This scaling gives Muon's step the size of AdamW's, so that one learning rate serves both.
        torch.optim.Muon(blocks, adjust_lr_fn="match_rms_adamw", **decay),
        torch.optim.AdamW(rest, betas=(0.9, 0.95), fused=True, **decay),
    ]


def _is_block_matrix(name: str, parameter: Tensor) -> bool:
    return name.startswith("blocks.") and parameter.dim() == 2 and "adaLN" not in name


def _save(model: Model, config: TrainConfig, out: Path) -> None:
    save_model(model, out)


KINDS = {
    "denoiser": Kind(TrainConfig, _tokenizer, text_stream, _denoiser, _optimizers, _save),
    "ar": Kind(TrainConfig, _tokenizer, text_stream, _ar, _optimizers, _save),
    "adapt": Kind(
        AdaptConfig,
        adapt.tokenizer,
        adapt.stream,
        adapt.build,
        adapt.optimizers,
        adapt.save,
        adapt.show_later_positions,
    ),
    "energy": Kind(
        EnergyTrainConfig,
        nce.tokenizer,
        text_stream,
        nce.build,
        lambda model, config: _optimizers(model.energy, config),
        nce.save,
        unit="nats per window",
    ),
}
