"""LLaDA and its relatives: the arithmetic of Llama without a causal mask, under names of its own.

Predictions are not shifted. Settings that would change the arithmetic are refused by name.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from edlm_engine.checkpoints.files import CONFIG
from edlm_engine.checkpoints.hub_tokenizer import find_tokenizer
from edlm_engine.checkpoints.registry import Loaded, Request, config_of
from edlm_engine.checkpoints.transformers_models import (
    HEAD,
    assemble,
    cast,
    mask_token,
    unused_ids,
)
from edlm_engine.checkpoints.weights import read_tensors, require_weight_file, weight_file
from edlm_engine.models.bidirectional import BidirectionalCausalLM

ROOT = "model.transformer."
OUTSIDE = {
    "model.embed_tokens.weight": f"{ROOT}wte.weight",
    "model.norm.weight": f"{ROOT}ln_f.weight",
    HEAD: f"{ROOT}ff_out.weight",
}
INSIDE = {
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ff_norm",
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "attn_out",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
}
# What the network must be, where config.json says something: else it is not that of Llama.
PLAIN = {
    "block_type": "llama",
    "activation_type": "silu",
    "layer_norm_type": "rms",
    "block_group_size": 1,
    "rope": True,
    "alibi": False,
    "include_bias": False,
    "include_qkv_bias": False,
    "attention_layer_norm": False,
    "scale_logits": False,
    "input_emb_norm": False,
}
SIZES = ("d_model", "n_heads", "n_layers", "mlp_hidden_size", "max_sequence_length")


class LLaDA:
    name = "llada"

    def matches(self, place: Path) -> bool:
        return config_of(place).get("model_type") == "llada" and weight_file(place) is not None

    def load(self, place: Path, request: Request) -> Loaded:
        path, config = require_weight_file(place), config_of(place)
        fields = _fields(config, path.parent / CONFIG)
        names = dict(OUTSIDE)
        for layer in range(fields["num_hidden_layers"]):
            for ours, theirs in INSIDE.items():
                new = f"model.layers.{layer}.{ours}.weight"
                names[new] = f"{ROOT}blocks.{layer}.{theirs}.weight"
        back = {theirs: ours for ours, theirs in names.items()}
        tensors = {
            back.get(name, name): t for name, t in read_tensors(place, meta=request.meta).items()
        }
        model = cast(
            assemble("Llama", fields, tensors, path, lambda name: names.get(name, name)), request
        )
        tokenizer = find_tokenizer(place)
        denoiser = BidirectionalCausalLM(
            model,
            mask_id=mask_token(request, config, tokenizer, place),
            never_drawn=unused_ids(fields["vocab_size"], tokenizer),
        )
        return Loaded(denoiser.to(request.device), tokenizer)


def _fields(config: dict[str, Any], path: Path) -> dict[str, Any]:
    """The configuration as one of Llama."""
    other = {
        name: config[name]
        for name, value in PLAIN.items()
        if config.get(name) is not None and config[name] != value
    }
    if other:
        raise ValueError(
            f"{path}: {other} is not the network of Llama, which is needed: "
            f"{ {name: PLAIN[name] for name in other} }"
        )
    rows = config.get("embedding_size") or config.get("vocab_size")
    missing = [name for name in SIZES if type(config.get(name)) is not int]
    if missing or type(rows) is not int:
        raise ValueError(f"{path} must have integers {missing or ['embedding_size']}")
    return {
        "vocab_size": rows,
        "hidden_size": config["d_model"],
        "intermediate_size": config["mlp_hidden_size"],
        "num_hidden_layers": config["n_layers"],
        "num_attention_heads": config["n_heads"],
        "num_key_value_heads": config.get("n_kv_heads") or config["n_heads"],
        "max_position_embeddings": config["max_sequence_length"],
        "rms_norm_eps": config.get("rms_norm_eps", 1e-5),
        "rope_theta": config.get("rope_theta", 10_000.0),
        "tie_word_embeddings": bool(config.get("weight_tying", False)),
    }
