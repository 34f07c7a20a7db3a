"""Causal language models of transformers with every position shown to every other."""

import torch


def all_visible(model, tokens):
    """Logits of the model's own eager attention under a mask of zeros."""
    model.set_attn_implementation("eager")
    size = tokens.shape[1]
    mask = torch.zeros(len(tokens), 1, size, size)
    return model(input_ids=tokens, attention_mask=mask, use_cache=False).logits
