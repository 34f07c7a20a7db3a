"""A denoiser, its tokenizer and the model of its energy, loaded together."""

import pytest
import torch
from graph_models import denoiser, scorer

from edlm_engine.checkpoints.bundle import load_ar, load_bundle, load_denoiser
from edlm_engine.checkpoints.native import save_model
from edlm_engine.checkpoints.tokenizer import Tokenizer
from edlm_engine.models import ARConfig, AutoregressiveTransformer, DiT, DiTConfig


def test_kinds_are_not_confused(tmp_path):
    save_model(denoiser(), tmp_path / "dit")
    save_model(scorer(), tmp_path / "ar")
    with pytest.raises(ValueError, match="must hold a left-to-right model, got a DiT"):
        load_ar(tmp_path / "dit")
    with pytest.raises(ValueError, match="must hold a DiT, got a AutoregressiveTransformer"):
        load_denoiser(tmp_path / "ar")


@pytest.fixture
def bundle_folder(tmp_path):
    """A tokenizer of 260 tokens, and models of as many, the mask not counted."""
    sizes = {"length": 8, "hidden_dim": 16, "n_blocks": 1, "n_heads": 2}
    Tokenizer.train(["some text"], 260).save(tmp_path / "tokenizer.json")
    save_model(DiT(DiTConfig(vocab_size=261, mask_id=260, **sizes)), tmp_path / "denoiser")
    ar = AutoregressiveTransformer(ARConfig(vocab_size=260, bos_id=0, **sizes))
    save_model(ar, tmp_path / "ar")
    return tmp_path


def test_bundle_of_three_parts(bundle_folder):
    for energy in ("ar", "coar"):
        whole = load_bundle(bundle_folder, energy=energy)
        assert isinstance(whole.ar, AutoregressiveTransformer) and whole.tokenizer.bos_id == 0
    for energy in (None, "default"):
        assert load_bundle(bundle_folder, energy=energy).ar is None
    other = load_bundle(bundle_folder / "denoiser", energy=bundle_folder / "ar")
    assert other.tokenizer is None and other.ar.bos_id == 0
    assert load_bundle(bundle_folder, dtype=torch.bfloat16).denoiser.head[0].dtype == torch.bfloat16


def test_bundle_errors(bundle_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model at .*nowhere: looked for"):
        load_bundle(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match=r'denoiser/ar, .* give the folder .*"./ar"'):
        load_bundle(bundle_folder / "denoiser", energy="ar")


def test_a_tokenizer_of_another_size(bundle_folder):
    path, vocab = bundle_folder / "tokenizer.json", load_bundle(bundle_folder).tokenizer.vocab_size
    Tokenizer.train(["some other text, and more of it"], vocab + 7).save(path)
    message = f"tokenizer.json must hold the denoiser's {vocab + 1} tokens, .* it holds {vocab + 7}"
    with pytest.raises(ValueError, match=message):
        load_bundle(bundle_folder)
    path.unlink()
    path.mkdir()
    with pytest.raises(ValueError, match=r"tokenizer.json must be a file, it is a folder"):
        load_bundle(bundle_folder)


def test_an_energy_of_another_tokenizer(bundle_folder):
    own, beside = bundle_folder / "tokenizer.json", bundle_folder / "ar" / "tokenizer.json"
    beside.write_bytes(own.read_bytes())
    assert load_bundle(bundle_folder, energy="ar").ar is not None
    vocab = load_bundle(bundle_folder).tokenizer.vocab_size
    other = Tokenizer.train(["quite another"], vocab)
    assert other.vocab_size == vocab
    other.save(beside)
    with pytest.raises(ValueError, match=r"must be of one tokenizer, \d+ tokens differ: .* token"):
        load_bundle(bundle_folder, energy="ar")
    assert load_bundle(bundle_folder).ar is None


def test_bundled_model_is_whole():
    bundle = load_bundle()
    assert bundle.denoiser.vocab_size == bundle.tokenizer.vocab_size + 1
    assert bundle.denoiser.mask_id == bundle.tokenizer.vocab_size
    assert bundle.ar.vocab_size == bundle.tokenizer.vocab_size
    assert bundle.ar.bos_id == bundle.tokenizer.bos_id
    # It learned something: its own language scores far better than the same words out of order.
    text = "He looked at her for a moment, and then he said that he would go to the house."
    ids = torch.tensor([bundle.tokenizer.encode(text)])
    with torch.inference_mode():
        scores = [
            bundle.ar.logits(x0).float().log_softmax(-1).gather(2, x0[..., None]).mean().item()
            for x0 in (ids, ids.flip(1))
        ]
    assert scores[0] > -4.5 and scores[0] > scores[1] + 1.5
