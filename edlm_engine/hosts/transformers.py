"""`model.generate(..., custom_generate=...)` of transformers, by this engine. Experimental.

For a masked language model of transformers (BERT, RoBERTa, ModernBERT and others), whose own class
has no `generate`: mix `transformers.GenerationMixin` in, or call the function of this module.

    model.generate(ids, custom_generate=FOLDER, trust_remote_code=True, max_new_tokens=20, seeds=1)
    generate(model, ids, max_new_tokens=20, seeds=1)

The folder holds one file, which imports this module; transformers asks for the trust.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from edlm_engine.engine import Engine
from edlm_engine.models.denoiser import CallableDenoiser
from edlm_engine.sampling.config import GenerationConfig
from edlm_engine.sampling.generation import Generation

FOLDER = str(Path(__file__).parent)
"""What `custom_generate=` takes."""


def generate(
    model: Any,
    input_ids: Tensor | None = None,
    *,
    inputs: Tensor | None = None,
    attention_mask: Tensor | None = None,
    tokenizer: Any = None,
    mask_id: int | None = None,
    seeds: int | list[int] = 0,
    energy: Any = None,
    return_dict_in_generate: bool = False,
    **settings: Any,
) -> Tensor | Generation:
    """Fills what is masked in `input_ids`, and `max_new_tokens` positions after them.

    Args:
        model: takes `input_ids [B, L]` and returns `logits [B, L, V]`.
        input_ids: [B, L] int64, known tokens, and `mask_id` where free.
        attention_mask: all ones, if given.
        mask_id: of the model's config or tokenizer if that names one.
        seeds: an int, or one for each row, which then is the same in any batch.
        energy: see `Engine`.
        return_dict_in_generate: return the whole `Generation`, with `record` in it: the step and
            the log-probability of each token under the law it was drawn from.
        settings: fields of `GenerationConfig`, also in transformers' words (`max_new_tokens`).

    Returns:
        sequences [B, L + new] int64 on the device of `input_ids`, or a `Generation`.

    Raises:
        ValueError: for a setting that is none, or where no mask token is known.
    """
    known = input_ids if input_ids is not None else inputs
    if known is None or known.ndim != 2:
        raise ValueError(f"input_ids must be int64 [B, L], got {getattr(known, 'shape', None)}")
    if attention_mask is not None and not attention_mask.all():
        raise ValueError("rows must have one length: attention_mask hides some positions")
    mask_id = _mask_of(model, tokenizer) if mask_id is None else mask_id
    # transformers passes all arguments that its `generate` has; those that were given count.
    settings = {name: value for name, value in settings.items() if value is not None}
    new = settings.pop("max_new_tokens", 0)
    free = known.new_full((len(known), new), mask_id)
    canvas = torch.cat([known, free], dim=1)
    settings.setdefault("steps", max(1, int((canvas == mask_id).sum(dim=1).max())))
    if energy is None:
        settings.setdefault("num_candidates", 1)
    config = GenerationConfig.from_dict(settings | {"record": return_dict_in_generate})
    denoiser = CallableDenoiser(
        lambda xt, sigma: model(input_ids=xt).logits,
        mask_id=mask_id,
        vocab_size=model.config.vocab_size,
        length=canvas.shape[1],
        device=known.device,
    )
    engine = Engine(denoiser, energy)
    out = engine.generate(len(canvas), config=config, canvas=canvas, seed=seeds)
    return out if return_dict_in_generate else out.sequences


def _mask_of(model: Any, tokenizer: Any) -> int:
    for place in (tokenizer, getattr(model, "config", None)):
        for name in ("mask_token_id", "mask_id"):
            found = getattr(place, name, None)
            if found is not None:
                return int(found)
    raise ValueError(
        "mask_id must be given: neither the tokenizer nor the model's config names one"
    )
