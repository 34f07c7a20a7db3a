"""The law that tokens are drawn from: how a configuration changes the denoiser's own."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from edlm_engine.sampling.config import GenerationConfig

# A nucleus this small holds the most probable token alone: no vocabulary reaches 1e12 tokens.
ARGMAX: dict[str, Any] = {"top_k": 0, "top_p": 1e-12, "min_p": 0.0}


def law_of(config: GenerationConfig) -> dict[str, Any]:
    """The options of `ops.sample_candidates` for it."""
    names = ("temperature", "top_k", "top_p", "min_p")
    return {name: getattr(config, name) for name in names}


def bias_of(config: GenerationConfig, vocab_size: int, device: torch.device) -> Tensor | None:
    """What is added to the logits, [V] float32; None if nothing is.

    Raises ValueError for tokens outside the vocabulary.
    """
    allowed, forbidden = config.allowed_tokens, config.forbidden_tokens
    given = dict(config.logit_bias)
    if allowed is None and not forbidden and not given:
        return None
    tokens: dict[str, Iterable[int]] = {
        "allowed_tokens": allowed or (),
        "forbidden_tokens": forbidden,
        "logit_bias": given,
    }
    for name, some in tokens.items():
        outside = next((token for token in some if token >= vocab_size), None)
        if outside is not None:
            raise ValueError(f"{name} must hold tokens in [0, {vocab_size}), got {outside}")
    bias = torch.zeros(vocab_size)
    for token, value in given.items():
        bias[token] = value
    if allowed is not None:
        kept = torch.full_like(bias, -torch.inf)
        kept[list(allowed)] = 0
        bias += kept
    bias[list(forbidden)] = -torch.inf
    return bias.to(device)
