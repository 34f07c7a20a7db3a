"""What a place holds, without its memory: the facts of the loaded model, and what is missing."""

import pytest
from mdlm_layouts import BARE_CONFIG, HUB_CONFIG, LENGTH, MASK, VOCAB, save, tensors
from safetensors.torch import load_file, save_file
from tiny_llama import save_tiny_gguf, save_tiny_llama

from edlm_engine.checkpoints.bundle import load_bundle
from edlm_engine.checkpoints.describe import describe
from edlm_engine.checkpoints.files import BUNDLED


def test_a_denoiser_and_the_energy_beside_it(tmp_path):
    save(tmp_path / "mdlm", BARE_CONFIG, tensors())
    save(tmp_path / "ar", BARE_CONFIG, tensors(causal=True))
    facts = describe(tmp_path / "mdlm")
    wanted = {
        "format": "mdlm",
        "kind": "denoiser",
        "vocabulary": VOCAB,
        "mask": MASK,
        "length": LENGTH,
        "stored as": "float32",
        "missing": "nothing",
        "tokenizer": "none",
    }
    assert wanted.items() <= facts.items()
    model = load_bundle(tmp_path / "mdlm").denoiser
    assert facts["parameters"] == sum(p.numel() for p in model.parameters())
    assert facts["energies"] == {
        "needed": f"a left-to-right model of the same tokens, 0 to {MASK - 1}",
        str(tmp_path / "ar"): "fits",
    }
    assert describe(tmp_path / "ar")["kind"] == "left to right"


def test_no_memory_for_the_weights(tmp_path, monkeypatch):
    save(tmp_path, HUB_CONFIG, tensors(prefix="backbone."))
    monkeypatch.setattr("edlm_engine.checkpoints.weights.load_file", None)
    assert describe(tmp_path)["missing"] == "nothing"


def test_what_is_missing_is_told(tmp_path):
    save(tmp_path, HUB_CONFIG, tensors(prefix="backbone."))
    weights = load_file(tmp_path / "model.safetensors")
    del weights["backbone.blocks.0.norm1.weight"]
    save_file(weights, tmp_path / "model.safetensors")
    facts = describe(tmp_path)
    assert "missing weights ['backbone.blocks.0.norm1.weight']" in facts["missing"]
    assert facts["format"] == "mdlm" and "parameters" not in facts


def test_the_bundled_pair():
    facts = describe(BUNDLED)
    assert facts["format"] == "native" and facts["tokenizer"] == "4096 tokens"
    assert facts["energies"][str(BUNDLED / "ar")] == "fits"


@pytest.mark.parametrize("save_one", [save_tiny_llama, lambda f: save_tiny_gguf(f / "m.gguf")])
def test_causal_models(tmp_path, save_one):
    save_one(tmp_path)
    facts = describe(tmp_path)
    assert (facts["format"], facts["vocabulary"], facts["BOS"]) == ("causal-lm", 5, 0)


def test_what_is_no_model(tmp_path):
    with pytest.raises(FileNotFoundError, match="no model at"):
        describe(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="it is empty"):
        describe(tmp_path)
    (tmp_path / "notes.txt").write_text("words")
    with pytest.raises(ValueError, match=r"in a format that is known: looked for config\.json"):
        describe(tmp_path)
