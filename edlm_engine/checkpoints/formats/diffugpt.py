"""DiffuGPT and DiffuLLaMA: a causal language model, its embedding apart, run without its mask.

Names: `embed_tokens.weight`, `denoise_model.*` (GPT-2 or Llama without the embedding) and
`lm_head.weight`, of which a tied pair may be stored once. Predictions are shifted by one, behind a
BOS token. The authors sample with temperature 0.95 and top-p 0.9 in 64 steps.
"""

from __future__ import annotations

from pathlib import Path

from edlm_engine.checkpoints.hub_tokenizer import find_tokenizer
from edlm_engine.checkpoints.registry import Loaded, Request, config_of
from edlm_engine.checkpoints.transformers_models import (
    HEAD,
    assemble,
    cast,
    mask_token,
    untie,
    unused_ids,
)
from edlm_engine.checkpoints.weights import (
    REMEDY,
    check_names,
    read_tensors,
    require_weight_file,
    tensor_names,
)
from edlm_engine.models.bidirectional import BidirectionalCausalLM

EMBEDDING, BODY = "embed_tokens.weight", "denoise_model."
# Model type -> (class in transformers, its prefix, the name of its embedding, its BOS token).
KINDS = {
    "gpt2": ("GPT2", "transformer.", "transformer.wte.weight", 50256),
    "llama": ("Llama", "model.", "model.embed_tokens.weight", 1),
}
# What the authors trained with, where neither configuration nor tokenizer names a mask: by model
# type and width (DiffuGPT-s, DiffuLLaMA).
MASKS = {("gpt2", 768): 10541, ("llama", 4096): 811}
BUFFERS = (".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq")


class DiffuGPT:
    name = "diffugpt"

    def matches(self, place: Path) -> bool:
        return config_of(place).get("model_type") in KINDS and any(
            name.startswith(BODY) for name in tensor_names(place)
        )

    def load(self, place: Path, request: Request) -> Loaded:
        path, config = require_weight_file(place), config_of(place)
        kind = config["model_type"]
        cls, prefix, embedding, bos_id = KINDS[kind]
        tensors = {
            _ours(name, prefix, embedding): tensor
            for name, tensor in read_tensors(place, meta=request.meta).items()
            if not name.endswith(BUFFERS)
        }
        if embedding not in tensors and HEAD in tensors:
            tensors[embedding] = tensors[HEAD]
        if embedding not in tensors:
            check_names("weights", {EMBEDDING, HEAD}, set(), path, REMEDY)
        tied = bool(config.get("tie_word_embeddings", kind == "gpt2")) or HEAD not in tensors
        tied = untie(tensors, embedding, tied)
        rows = len(tensors[embedding])
        fields = {**config, "vocab_size": rows, "tie_word_embeddings": tied}
        fields.pop("model_type")
        model = cast(
            assemble(cls, fields, tensors, path, lambda n: _theirs(n, prefix, embedding)), request
        )
        tokenizer = find_tokenizer(place)
        default = MASKS.get((kind, tensors[embedding].shape[1]))
        mask_id = mask_token(request, config, tokenizer, place, default)
        bos_id = bos_id if config.get("bos_token_id") is None else config["bos_token_id"]
        denoiser = BidirectionalCausalLM(
            model,
            mask_id=mask_id,
            bos_id=bos_id,
            length=model.config.max_position_embeddings - 1 if kind == "gpt2" else None,
            never_drawn=unused_ids(rows, tokenizer),
        )
        return Loaded(denoiser.to(request.device), tokenizer)


def _ours(name: str, prefix: str, embedding: str) -> str:
    """The name in transformers of a name in the file."""
    if name.startswith(BODY):
        return prefix + name.removeprefix(BODY)
    return embedding if name == EMBEDDING else name


def _theirs(name: str, prefix: str, embedding: str) -> str:
    if name == embedding:
        return EMBEDDING
    return BODY + name.removeprefix(prefix) if name.startswith(prefix) else name
