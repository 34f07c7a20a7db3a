"""LLaDA's names against transformers' Llama with every position visible."""

import json

import pytest
import torch
from all_visible import all_visible
from safetensors.torch import load_file, save_file
from tiny_llama import tiny_llama

from edlm_engine import Engine, GenerationConfig
from edlm_engine.checkpoints.bundle import load_bundle
from edlm_engine.checkpoints.describe import describe

VOCAB, MASK = 8, 5
OPTIONS = {"rope_theta": 500000.0, "rms_norm_eps": 1e-5, "num_key_value_heads": 4}
CONFIG = {
    "model_type": "llada",
    "architectures": ["LLaDAModelLM"],
    "auto_map": {"AutoModel": "modeling_llada.LLaDAModelLM"},
    "d_model": 16,
    "n_heads": 4,
    "n_kv_heads": 4,
    "n_layers": 2,
    "mlp_hidden_size": 32,
    "mlp_ratio": 4,
    "activation_type": "silu",
    "block_type": "llama",
    "block_group_size": 1,
    "vocab_size": VOCAB,
    "embedding_size": VOCAB,
    "mask_token_id": MASK,
    "rope": True,
    "rope_theta": 500000.0,
    "rms_norm_eps": 1e-5,
    "layer_norm_type": "rms",
    "include_bias": False,
    "include_qkv_bias": False,
    "attention_layer_norm": False,
    "weight_tying": False,
    "scale_logits": False,
    "input_emb_norm": False,
    "max_sequence_length": 32,
}
INSIDE = {
    "self_attn.q_proj": "q_proj",
    "self_attn.k_proj": "k_proj",
    "self_attn.v_proj": "v_proj",
    "self_attn.o_proj": "attn_out",
    "mlp.gate_proj": "ff_proj",
    "mlp.up_proj": "up_proj",
    "mlp.down_proj": "ff_out",
    "input_layernorm": "attn_norm",
    "post_attention_layernorm": "ff_norm",
}


def llama():
    return tiny_llama(VOCAB, tie_word_embeddings=False, **OPTIONS)


def save(folder, **changes):
    w = llama().state_dict()
    root = "model.transformer."
    made = {
        f"{root}wte.weight": w["model.embed_tokens.weight"],
        f"{root}ln_f.weight": w["model.norm.weight"],
        f"{root}ff_out.weight": w["lm_head.weight"],
    }
    for i in range(2):
        for theirs, ours in INSIDE.items():
            made[f"{root}blocks.{i}.{ours}.weight"] = w[f"model.layers.{i}.{theirs}.weight"]
    (folder / "config.json").write_text(json.dumps(CONFIG | changes))
    save_file(made, folder / "model.safetensors")


@torch.no_grad()
def test_it_is_llama_with_all_visible(tmp_path):
    save(tmp_path)
    denoiser = load_bundle(tmp_path).denoiser
    assert (denoiser.mask_id, denoiser.length) == (MASK, 32)
    xt = torch.randint(VOCAB, (3, 9))
    wanted = all_visible(llama(), xt)
    torch.testing.assert_close(denoiser.logits(xt), wanted, rtol=0, atol=1e-4)
    wrong = all_visible(tiny_llama(VOCAB, tie_word_embeddings=False), xt)
    assert (denoiser.logits(xt) - wrong).abs().max() > 1e-3  # the rotation does count


def test_it_has_no_length_of_its_own(tmp_path):
    save(tmp_path)
    with pytest.raises(ValueError, match=r"new_tokens must be given: .* it takes up to 32 tokens"):
        Engine.from_pretrained(tmp_path).generate()


def test_it_generates(tmp_path):
    save(tmp_path)
    out = Engine.from_pretrained(tmp_path).generate(
        2, config=GenerationConfig(steps=4, length=6), prompt=[1, 2]
    )
    assert (out.sequences != MASK).all() and (out.sequences[:, :2] == torch.tensor([1, 2])).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"scale_logits": True}, r"\{'scale_logits': True\} is not the network of Llama"),
        ({"layer_norm_type": "default"}, "'layer_norm_type': 'default'"),
        ({"d_model": None}, r"must have integers \['d_model'\]"),
        ({"n_layers": 3}, r"missing weights \['model.transformer.blocks.2.attn_norm.weight'"),
        ({"embedding_size": 9}, r"transformer.ff_out.weight must be \[9, 16\], got \[8, 16\]"),
    ],
)
def test_other_networks_are_named(tmp_path, change, message):
    save(tmp_path, **change)
    with pytest.raises(ValueError, match=message):
        load_bundle(tmp_path)


def test_unexpected_weights_are_named(tmp_path):
    save(tmp_path)
    weights = load_file(tmp_path / "model.safetensors") | {"extra": torch.ones(1)}
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=r"unexpected weights \['extra'\]"):
        load_bundle(tmp_path)


def test_described_as_loaded(tmp_path):
    save(tmp_path)
    place = tmp_path
    facts, model = describe(place), load_bundle(place).denoiser
    assert facts["missing"] == "nothing" and facts["mask"] == model.mask_id
    assert (facts["length"], facts["vocabulary"]) == (model.length, model.vocab_size)
