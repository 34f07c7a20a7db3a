"""DiffuGPT and DiffuLLaMA: the wrapper's names, against transformers' GPT-2 and Llama."""

import json

import pytest
import torch
import torch.nn.functional as F
from all_visible import all_visible
from safetensors.torch import load_file, save_file
from tiny_llama import tiny_llama
from transformers import GPT2Config, GPT2LMHeadModel

from edlm_engine import Engine, GenerationConfig
from edlm_engine.checkpoints.bundle import load_bundle, load_for_sampling
from edlm_engine.checkpoints.describe import describe
from edlm_engine.checkpoints.formats import diffugpt

VOCAB, BOS, MASK = 8, 6, 7


def gpt2():
    torch.manual_seed(0)
    sizes = {"n_embd": 16, "n_layer": 2, "n_head": 2, "n_positions": 16}
    config = GPT2Config(vocab_size=VOCAB, **sizes, bos_token_id=BOS, initializer_range=0.3)
    return GPT2LMHeadModel(config).eval()


def llama():
    return tiny_llama(VOCAB, tie_word_embeddings=False)


MODELS = {
    "gpt2": (gpt2, "transformer.", "wte.weight"),
    "llama": (llama, "model.", "embed_tokens.weight"),
}


def save(folder, kind, head=True, embedding=True):
    model, prefix, name = MODELS[kind]
    model = model()
    weights = {}
    for key, tensor in model.state_dict().items():
        if key == "lm_head.weight":
            weights[key] = tensor.clone()
        elif key == prefix + name:
            weights["embed_tokens.weight"] = tensor.clone()
        else:
            weights["denoise_model." + key.removeprefix(prefix)] = tensor
    if kind == "gpt2":  # a buffer of older versions
        weights["denoise_model.h.0.attn.bias"] = torch.ones(1, 1, 16, 16, dtype=torch.bool)
    if not head:
        del weights["lm_head.weight"]
    if not embedding:
        del weights["embed_tokens.weight"]
    config = model.config.to_dict() | {"bos_token_id": BOS, "mask_token_id": MASK}
    (folder / "config.json").write_text(json.dumps(config))
    save_file(weights, folder / "model.safetensors")
    return model


@pytest.mark.parametrize(
    ("kind", "stored"),
    [
        ("gpt2", {}),
        ("gpt2", {"head": False}),
        ("gpt2", {"embedding": False}),
        ("llama", {}),
    ],
)
@torch.no_grad()
def test_it_is_the_model_with_all_visible_behind_a_bos(tmp_path, kind, stored):
    model = save(tmp_path, kind, **stored)
    denoiser = load_bundle(tmp_path).denoiser
    assert (denoiser.mask_id, denoiser.bos_id) == (MASK, BOS)
    xt = torch.randint(VOCAB, (3, 9))
    wanted = all_visible(model, F.pad(xt, (1, 0), value=BOS))[:, :-1]
    torch.testing.assert_close(denoiser.logits(xt), wanted, rtol=0, atol=1e-4)


@pytest.mark.parametrize("kind", MODELS)
def test_it_generates_with_its_parent_as_energy(tmp_path, kind):
    save(tmp_path, kind)
    (tmp_path / "parent").mkdir()
    MODELS[kind][0]().save_pretrained(tmp_path / "parent")
    engine = Engine.from_pretrained(tmp_path, energy=tmp_path / "parent")
    assert engine.energy.model.forbidden_id == MASK
    out = engine.generate(2, config=GenerationConfig(steps=4, num_candidates=3, length=6))
    assert (out.sequences != MASK).all()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda w: w.pop("denoise_model.ln_f.bias"), r"missing weights \['denoise_model.ln_f.bias"),
        (lambda w: w.update(extra=torch.ones(1)), r"unexpected weights \['extra'\]"),
        (
            lambda w: w.update({"denoise_model.wpe.weight": torch.ones(3, 16)}),
            r"denoise_model.wpe.weight must be \[16, 16\], got \[3, 16\]",
        ),
        (
            lambda w: [w.pop("lm_head.weight"), w.pop("embed_tokens.weight")],
            r"missing weights \['embed_tokens.weight', 'lm_head.weight'\]",
        ),
    ],
)
def test_wrong_weights_are_named(tmp_path, change, message):
    save(tmp_path, "gpt2")
    weights = load_file(tmp_path / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"model.safetensors.*{message}"):
        load_bundle(tmp_path)


def test_a_mask_that_nothing_names(tmp_path, monkeypatch):
    save(tmp_path, "gpt2")
    config = json.loads((tmp_path / "config.json").read_text())
    del config["mask_token_id"]
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="names no mask token: give mask_id"):
        load_bundle(tmp_path)
    assert load_for_sampling(tmp_path, mask_id=3).denoiser.mask_id == 3
    monkeypatch.setitem(diffugpt.MASKS, ("gpt2", 16), 4)  # as the authors' sizes have theirs
    assert load_bundle(tmp_path).denoiser.mask_id == 4


def test_described_as_loaded(tmp_path):
    save(tmp_path, "gpt2")
    place = tmp_path
    facts, model = describe(place), load_bundle(place).denoiser
    assert facts["missing"] == "nothing" and facts["mask"] == model.mask_id
    assert (facts["length"], facts["vocabulary"]) == (model.length, model.vocab_size)
