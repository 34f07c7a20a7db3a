"""Qwen and Llama run bidirectionally, under the names of transformers.

The `a2d-*` models predict each position at its own place; Dream and DiffuCoder are shifted by one.
"""

from __future__ import annotations

from pathlib import Path

from edlm_engine.checkpoints.hub_tokenizer import find_tokenizer
from edlm_engine.checkpoints.registry import Loaded, Request, config_of
from edlm_engine.checkpoints.transformers_models import (
    assemble,
    cast,
    mask_token,
    untie,
    unused_ids,
)
from edlm_engine.checkpoints.weights import read_tensors, require_weight_file, weight_file
from edlm_engine.models.bidirectional import BidirectionalCausalLM

# Model type -> (class in transformers, whether predictions are shifted).
KINDS = {
    "a2d-llama": ("Llama", False),
    "a2d-qwen2": ("Qwen2", False),
    "a2d-qwen3": ("Qwen3", False),
    "Dream": ("Qwen2", True),
    "dream": ("Qwen2", True),
}
EMBEDDING = "model.embed_tokens.weight"


class QwenDiffusion:
    name = "qwen-diffusion"

    def matches(self, place: Path) -> bool:
        return config_of(place).get("model_type") in KINDS and weight_file(place) is not None

    def load(self, place: Path, request: Request) -> Loaded:
        path, config = require_weight_file(place), config_of(place)
        kind, shifted = KINDS[config["model_type"]]
        tensors = read_tensors(place, meta=request.meta)
        tied = untie(tensors, EMBEDDING, bool(config.get("tie_word_embeddings", False)))
        fields = {**config, "tie_word_embeddings": tied, "use_sliding_window": False}
        for name in ("model_type", "auto_map", "architectures"):
            fields.pop(name, None)
        model = cast(assemble(kind, fields, tensors, path), request)
        tokenizer = find_tokenizer(place)
        denoiser = BidirectionalCausalLM(
            model,
            mask_id=mask_token(request, config, tokenizer, place),
            shifted=shifted,
            never_drawn=unused_ids(model.config.vocab_size, tokenizer),
        )
        return Loaded(denoiser.to(request.device), tokenizer)
