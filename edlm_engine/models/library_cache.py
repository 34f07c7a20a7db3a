"""A `KVCache` in the hands of a model of the transformers library."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edlm_engine.models.kv_cache import KVCache

TRIED_LENGTH = 8


def library_arguments(model: Any, places: Tensor, cache: KVCache) -> dict[str, Any]:
    """What `model` takes beside the tokens of a step that the cache has begun, at these places.

    The library's own caches append to all sequences alike; here each is written at its own places,
    by a class of the library's that hands on what layers bring. Models call nothing else of it once
    they are given positions and a mask of four dimensions.
    """
    from transformers.cache_utils import Cache

    class Rows(Cache):
        def update(self, key_states, value_states, layer_idx, *_, **__):
            return cache.write(layer_idx, key_states, value_states)

    embedding = model.get_input_embeddings().weight
    device = places.device if embedding.is_meta else embedding.device
    # Numbers to be added to the scores: not every attention of the library takes truth values.
    mask = torch.zeros_like(cache.mask, dtype=model.base_model.dtype)
    mask.masked_fill_(~cache.mask, torch.finfo(mask.dtype).min)
    return {
        "position_ids": places.to(device),
        "attention_mask": mask.to(device),
        "past_key_values": Rows(layers=[]),
        "use_cache": True,
    }


def require_whole_attention(config: Any, length: int) -> None:
    """ValueError for a model of which some layers see a part of `length` tokens only."""
    config = config.get_text_config()
    window = getattr(config, "sliding_window", None)
    if window and getattr(config, "use_sliding_window", True) and length > window:
        raise ValueError(f"length must be at most {window}, the model's window, got {length}")
    kinds = set(getattr(config, "layer_types", None) or ())
    if kinds - {"full_attention", "sliding_attention"}:
        raise ValueError(f"a model with layers of {sorted(kinds)} cannot go on from a cache")


@torch.no_grad()
def try_steps(scorer: Any, length: int) -> None:
    """ValueError unless two sequences that go on from different places come out as in one pass."""
    first = scorer.first_position
    if length <= first:
        return
    device, name = scorer.head[0].device, type(scorer.model).__name__
    tokens = torch.arange(2 * length, device=device).view(2, length) % scorer.vocab_size
    whole = scorer.hidden(tokens)
    error = (1e-3 if whole.dtype == torch.float32 else 5e-2) * whole.abs().max()
    cache = KVCache(2, length, scorer.bos_id, device)
    count = max(1, length // 2)
    try:
        for starts in ([first, first], [first + 1, count]):
            got = scorer.hidden_step(tokens, cache, torch.tensor(starts, device=device), count)
            for mine, start, wanted in zip(got, starts, whole, strict=True):
                wanted = wanted[start : start + count]
                if not ((mine[: len(wanted)] - wanted).abs() <= error).all():
                    raise ValueError("its states then are others than in one pass")
    except Exception as why:  # whatever the library makes of a cache that it does not know
        raise ValueError(f"{name} cannot go on from a cache of several sequences: {why}") from why
