"""a2d and Dream folders against transformers' Qwen and Llama with every position visible."""

import json

import pytest
import torch
from all_visible import all_visible
from safetensors.torch import load_file, save_file
from tiny_llama import save_tiny_llama, tiny_tokenizer
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
)

from edlm_engine import Engine, GenerationConfig
from edlm_engine.checkpoints.bundle import load_bundle, load_pair
from edlm_engine.checkpoints.describe import describe
from edlm_engine.checkpoints.registry import Request

VOCAB, MASK = 8, 5  # tokens 0 to 4 of the tiny tokenizer, then its mask, then padding
KINDS = {
    "a2d-llama": (LlamaConfig, LlamaForCausalLM),
    "a2d-qwen2": (Qwen2Config, Qwen2ForCausalLM),
    "a2d-qwen3": (Qwen3Config, Qwen3ForCausalLM),
    "Dream": (Qwen2Config, Qwen2ForCausalLM),
}


def model(kind, tied=False):
    config, cls = KINDS[kind]
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2}
    made = config(
        vocab_size=VOCAB,
        **(sizes | heads),
        max_position_embeddings=32,
        initializer_range=0.5,
        rope_theta=1e6,
        tie_word_embeddings=tied,
        **({"head_dim": 8} if kind == "a2d-qwen3" else {}),
    )
    return cls(made).eval()


def save(folder, kind, tied=False, mask_in_config=True):
    made = model(kind, tied)
    made.save_pretrained(folder)
    config = json.loads((folder / "config.json").read_text())
    config |= {"model_type": kind, "architectures": ["Anything"], "auto_map": {"AutoModel": "x.Y"}}
    if mask_in_config:
        config["mask_token_id"] = MASK
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer(), mask_token="<|mask|>")
    tokenizer.save_pretrained(folder)
    return made


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_it_is_the_model_with_all_visible(tmp_path, kind, tied):
    made = save(tmp_path, kind, tied, mask_in_config=kind == "Dream")
    bundle = load_bundle(tmp_path)
    denoiser = bundle.denoiser
    assert (denoiser.mask_id, denoiser.length, denoiser.bos_id) == (MASK, 32, None)
    xt = torch.randint(VOCAB, (3, 9))
    wanted = all_visible(made, xt)
    if kind == "Dream":
        wanted = torch.cat((wanted[:, :1], wanted[:, :-1]), 1)
    logits = denoiser.logits(xt)
    torch.testing.assert_close(logits[..., :6], wanted[..., :6], rtol=0, atol=1e-4)
    assert logits[..., 6:].eq(-torch.inf).all()  # rows after the tokenizer's last token
    assert bundle.tokenizer.encode("ab a") == [4, 2]


def test_a_tied_head_keeps_float32_over_bfloat16_blocks(tmp_path):
    made = save(tmp_path, "a2d-qwen2", tied=True)
    request = Request(blocks=torch.bfloat16, head=torch.float32)
    denoiser = load_pair(tmp_path, None, request).denoiser
    assert torch.equal(denoiser.head[0], made.get_input_embeddings().weight)
    assert denoiser.model.get_input_embeddings().weight.dtype == torch.bfloat16
    assert denoiser.head[1].dtype == torch.float32  # -inf at rows that pad the vocabulary


@pytest.mark.parametrize("kind", KINDS)
def test_it_generates_with_an_energy_of_a_shorter_vocabulary(tmp_path, kind):
    (tmp_path / "denoiser").mkdir()
    save(tmp_path / "denoiser", kind)
    save_tiny_llama(tmp_path / "ar")
    engine = Engine.from_pretrained(tmp_path, energy="ar")
    out = engine.generate(2, config=GenerationConfig(steps=4, num_candidates=3, length=6))
    assert (out.sequences < MASK).all() and (out.energy_evaluations > 0).all()
    assert out.texts[0].replace(" ", "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("lm_head.weight"), r"missing weights \['lm_head.weight'\]"),
        (lambda w: w.update(extra=torch.ones(1)), r"unexpected weights \['extra'\]"),
        (
            lambda w: w.update({"model.norm.weight": torch.ones(3)}),
            r"model.norm.weight must be \[16\], got \[3\]",
        ),
    ],
)
def test_wrong_weights_are_named(tmp_path, change, message):
    save(tmp_path, "Dream")
    weights = load_file(tmp_path / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"model.safetensors.*{message}"):
        load_bundle(tmp_path)


def test_a_configuration_of_something_else_is_named(tmp_path):
    save(tmp_path, "a2d-qwen2")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"hidden_size": "wide"}))
    with pytest.raises(ValueError, match=r"config.json is not that of a Qwen2"):
        load_bundle(tmp_path)


def test_a_causal_model_is_no_denoiser(tmp_path):
    save_tiny_llama(tmp_path)
    with pytest.raises(ValueError, match=r"must hold a denoiser, it is a left-to-right model"):
        load_bundle(tmp_path)


def test_described_as_loaded(tmp_path):
    save(tmp_path, "a2d-qwen3", tied=True)
    place = tmp_path
    facts, model = describe(place), load_bundle(place).denoiser
    assert facts["missing"] == "nothing" and facts["mask"] == model.mask_id
    assert (facts["length"], facts["vocabulary"]) == (model.length, model.vocab_size)
