"""The MDM and AR families of SMDM: single files with the names of lit-gpt.

The arithmetic is that of Llama (half-split rotation, RMS norm, gated SiLU), but the sines of the
rotation are rounded to bfloat16, as the models were trained. A file tells its depth
and widths but not its heads, which stand in the table of the published sizes. An `mdm-*` file has
one more row in the embedding than in the head: the mask.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from edlm_engine.checkpoints.hub_tokenizer import find_tokenizer
from edlm_engine.checkpoints.registry import Loaded, Request, config_of
from edlm_engine.checkpoints.transformers_models import HEAD, assemble, cast
from edlm_engine.checkpoints.weights import (
    REMEDY,
    check_names,
    read_tensors,
    require_weight_file,
    tensor_names,
    weight_file,
)
from edlm_engine.models.bidirectional import BidirectionalCausalLM
from edlm_engine.models.causal_lm import CausalLMScorer

# (layers, width, width of the feed-forward layers) -> heads, by millions of parameters.
HEADS = {
    (6, 256, 1024): 4,  # 6
    (8, 384, 1536): 6,  # 19
    (8, 512, 2048): 8,  # 34
    (9, 576, 2304): 9,  # 48
    (10, 640, 2560): 10,  # 66
    (16, 640, 1600): 8,  # 75
    (13, 640, 2560): 10,  # 85
    (12, 768, 3072): 12,  # 113
    (15, 768, 3072): 12,  # 142
    (18, 768, 3072): 12,  # 170
    (14, 896, 3584): 14,  # 180
    (16, 896, 3584): 14,  # 206
    (18, 896, 3584): 14,  # 231
    (16, 1024, 4096): 16,  # 268
    (18, 1024, 4096): 16,  # 302
    (20, 1024, 4096): 16,  # 336
    (18, 1280, 5120): 10,  # 472
    (21, 1280, 5120): 10,  # 551
    (18, 1408, 5632): 11,  # 571
    (24, 1280, 5120): 10,  # 629
    (21, 1408, 5632): 11,  # 666
    (19, 1536, 6144): 12,  # 717
    (24, 1408, 5632): 11,  # 761
    (22, 1536, 6144): 12,  # 831
    (25, 1536, 6144): 12,  # 944
    (20, 1792, 7168): 14,  # 1028
    (24, 1792, 7168): 14,  # 1233
    (22, 2048, 8192): 16,  # 1476
    (25, 2048, 8192): 16,  # 1678
    (28, 2176, 8704): 17,  # 2121
}
LENGTH = 2048
END = 2  # of the Llama-2 vocabulary: what stood before each text in training
EMBEDDING, QKV, UP = "transformer.wte.weight", "attn.attn.weight", "mlp.swiglu.w1.weight"
OUTSIDE = {
    EMBEDDING: "model.embed_tokens.weight",
    "transformer.ln_f.weight": "model.norm.weight",
    HEAD: HEAD,
}
INSIDE = {
    "norm_1": "input_layernorm",
    "norm_2": "post_attention_layernorm",
    "attn.proj": "self_attn.o_proj",
    "mlp.swiglu.w1": "mlp.gate_proj",
    "mlp.swiglu.w2": "mlp.up_proj",
    "mlp.swiglu.w3": "mlp.down_proj",
}
PARTS = ("q", "k", "v")


class SMDM:
    name = "smdm"

    def matches(self, place: Path) -> bool:
        wanted = {EMBEDDING, f"transformer.h.0.{QKV}"}
        return (
            weight_file(place) is not None
            and not config_of(place)
            and (wanted <= tensor_names(place))
        )

    def load(self, place: Path, request: Request) -> Loaded:
        path = require_weight_file(place)
        tensors = read_tensors(path, meta=request.meta)
        fields = _fields(tensors, path)
        masked = fields["vocab_size"] == len(tensors[HEAD]) + 1
        if masked:  # the head has no row for the mask, which is never drawn
            tensors[HEAD] = torch.cat((tensors[HEAD], torch.zeros_like(tensors[HEAD][:1])))
        renamed, names = rename(tensors, fields)
        model = assemble("Llama", fields, renamed, path, lambda name: names.get(name, name))
        model.model.rotary_emb.register_forward_hook(_round)
        tokenizer = find_tokenizer(path)
        if not masked:
            scorer = CausalLMScorer(model, END)
            cast(model, request)
            return Loaded(scorer.to(request.device), tokenizer)
        cast(model, request)
        denoiser = BidirectionalCausalLM(model, mask_id=fields["vocab_size"] - 1, length=LENGTH)
        return Loaded(denoiser.to(request.device), tokenizer)


def _round(module: nn.Module, args: tuple, angles: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
    return tuple(part.bfloat16().to(part.dtype) for part in angles)


def _fields(tensors: dict[str, Tensor], path: Path) -> dict[str, Any]:
    first = {EMBEDDING, HEAD, f"transformer.h.0.{UP}"}
    check_names("weights", first, first & set(tensors), path, REMEDY)
    rows, width = tensors[EMBEDDING].shape
    numbers = {int(m[1]) for m in (re.match(r"transformer\.h\.(\d+)\.", n) for n in tensors) if m}
    sizes = len(numbers), width, len(tensors[f"transformer.h.0.{UP}"])
    if sizes not in HEADS:
        raise ValueError(
            f"{path}: (layers, width, feed-forward width) must be of a published SMDM model, "
            f"got {sizes}; known are {sorted(HEADS)}"
        )
    if len(tensors[HEAD]) not in (rows, rows - 1):
        raise ValueError(
            f"{path}: {HEAD} must have {rows} rows (ar) or {rows - 1} (mdm), "
            f"got {len(tensors[HEAD])}; {REMEDY}"
        )
    return {
        "vocab_size": rows,
        "num_hidden_layers": sizes[0],
        "hidden_size": width,
        "intermediate_size": sizes[2],
        "num_attention_heads": HEADS[sizes],
        "num_key_value_heads": HEADS[sizes],
        "max_position_embeddings": LENGTH,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
    }


def rename(
    tensors: dict[str, Tensor], fields: dict[str, Any]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors by the names of Llama, and the names they had, for messages.

    Rows of attn.attn are ordered (head, query and key and value, dimension).
    """
    ours, theirs = {}, {v: k for k, v in OUTSIDE.items()}
    layers = fields["num_hidden_layers"]
    for layer in range(layers):
        for inside, name in INSIDE.items():
            theirs[f"model.layers.{layer}.{name}.weight"] = f"transformer.h.{layer}.{inside}.weight"
        for part in PARTS:
            name = f"model.layers.{layer}.self_attn.{part}_proj.weight"
            theirs[name] = f"transformer.h.{layer}.{QKV} ({part})"
    back = {old: new for new, old in theirs.items()}
    heads = fields["num_attention_heads"]
    for name, tensor in tensors.items():
        if name.endswith(f".{QKV}") and len(tensor) % (3 * heads) == 0:
            rows = tensor.unflatten(0, (heads, 3, -1))
            for i, part in enumerate(PARTS):
                new = back.get(f"{name} ({part})", f"{name} ({part})")
                ours[new] = rows[:, i].flatten(0, 1).contiguous()
        else:
            ours[back.get(name, name)] = tensor
    return ours, theirs
