"""Checkpoints of other layouts, written in ours: the same function, and nothing half done."""

import json

import pytest
import torch
from mdlm_layouts import BARE_CONFIG, HUB_CONFIG, MASK, restated, save, tensors
from tiny_llama import save_tiny_llama, tiny_tokenizer

from edlm_engine.checkpoints.bundle import load_ar, load_bundle
from edlm_engine.checkpoints.convert import convert
from edlm_engine.checkpoints.native import load_model
from edlm_engine.models import DiT

XT = torch.randint(MASK + 1, (2, 12), generator=torch.Generator().manual_seed(0))


@torch.no_grad()
def test_a_denoiser_of_the_hub(tmp_path):
    save(tmp_path / "hub", HUB_CONFIG, tensors(prefix="backbone."))
    assert convert(tmp_path / "hub", tmp_path / "out") == "denoiser"
    files = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert files == ["config.json", "model.safetensors"]
    model = load_model(tmp_path / "out")
    assert type(model) is DiT and json.loads((tmp_path / "out/config.json").read_text())
    wanted = restated(tensors(), XT).float()
    torch.testing.assert_close(model.logits(XT, torch.zeros(2)), wanted, rtol=0, atol=2e-4)


def test_a_pair_with_its_tokenizer(tmp_path):
    save(tmp_path / "pair" / "denoiser", HUB_CONFIG, tensors(prefix="backbone."))
    save(tmp_path / "pair" / "ar", BARE_CONFIG, tensors(causal=True))
    convert(tmp_path / "pair", tmp_path / "out")
    assert load_bundle(tmp_path / "out", energy="ar").ar.forbidden_id == MASK
    half = {name: t.bfloat16() for name, t in tensors(causal=True).items()}
    save(tmp_path / "half", BARE_CONFIG, half)
    tiny_tokenizer().save(str(tmp_path / "half" / "tokenizer.json"))
    assert convert(tmp_path / "half", tmp_path / "ar") == "left to right"
    assert load_ar(tmp_path / "ar").head[0].dtype == torch.bfloat16
    assert (tmp_path / "ar" / "tokenizer.json").is_file()


def test_networks_of_others_are_refused(tmp_path):
    save_tiny_llama(tmp_path / "llama")
    with pytest.raises(ValueError, match="LlamaForCausalLM is not a network of this project"):
        convert(tmp_path / "llama", tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_target_that_holds_something(tmp_path):
    save(tmp_path / "hub", HUB_CONFIG, tensors(prefix="backbone."))
    with pytest.raises(ValueError, match="must be a new or empty folder"):
        convert(tmp_path / "hub", tmp_path / "hub")
