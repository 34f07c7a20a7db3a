"""A denoiser, its tokenizer and the model of its energy, loaded together."""

import pytest
import torch
from graph_models import denoiser, scorer

from edlm_engine import Engine, GenerationConfig, NCEEnergy
from edlm_engine.checkpoints.bundle import load_ar, load_bundle, load_denoiser
from edlm_engine.checkpoints.convert import convert
from edlm_engine.checkpoints.describe import describe
from edlm_engine.checkpoints.native import save_model
from edlm_engine.checkpoints.tokenizer import Tokenizer
from edlm_engine.models import (
    ARConfig,
    AutoregressiveTransformer,
    DiT,
    DiTConfig,
    EnergyConfig,
    EnergyTransformer,
)
from edlm_engine.models.energy import FoldedEnergy


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
    nce = EnergyTransformer(EnergyConfig(vocab_size=261, mask_id=260, **sizes))
    save_model(nce, tmp_path / "energy")
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


def test_a_learned_energy_beside_the_denoiser_or_elsewhere(bundle_folder):
    for path, energy in (
        (bundle_folder, "nce"),
        (bundle_folder / "denoiser", bundle_folder / "energy"),
    ):
        whole = load_bundle(path, energy=energy)
        assert type(whole.nce) is EnergyTransformer and whole.ar is None
        engine = Engine.from_pretrained(path, energy=energy)
        assert type(engine.energy) is NCEEnergy and type(engine.energy.model) is FoldedEnergy
    engine.save_pretrained(bundle_folder / "out")
    names = sorted(path.name for path in (bundle_folder / "out").iterdir())
    assert names == ["denoiser", "energy"]
    config = GenerationConfig(steps=4, num_candidates=3)
    again = Engine.from_pretrained(bundle_folder / "out", energy="nce")
    ran = [e.generate(2, config=config, seed=3).sequences for e in (engine, again)]
    assert torch.equal(*ran)
    convert(bundle_folder, bundle_folder / "converted")
    assert load_bundle(bundle_folder / "converted", energy="nce").nce is not None
    assert convert(bundle_folder / "energy", bundle_folder / "one") == "energy"
    facts = describe(bundle_folder)["energies"]
    assert facts[str(bundle_folder / "energy")] == "fits"
    assert describe(bundle_folder / "energy")["kind"] == "NCE energy"


def test_a_learned_energy_that_is_not_there_or_no_energy(bundle_folder):
    with pytest.raises(ValueError, match="must hold a denoiser, it is an NCE energy"):
        load_bundle(bundle_folder / "energy")
    with pytest.raises(ValueError, match="must hold a left-to-right model, got a EnergyTransf"):
        load_ar(bundle_folder / "energy")
    with pytest.raises(FileNotFoundError, match=r"denoiser/energy, .* means the NCE energy beside"):
        load_bundle(bundle_folder / "denoiser", energy="nce")
    with pytest.raises(ValueError, match="device_map is only for an energy that is a causal"):
        Engine.from_pretrained(bundle_folder, energy="nce", device_map="cpu")


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


@torch.inference_mode()
def test_the_bundled_nce_energy_tells_text_from_draws():
    whole = load_bundle(energy="nce")
    words = (
        '"I do not know what you mean," she said, and turned away to the window. He looked at her '
        "for a moment, and then he took up his hat and went out of the room without a word."
    )
    text = torch.tensor([whole.tokenizer.encode(words)])
    xt = torch.full_like(text, whole.denoiser.mask_id)
    logits = whole.denoiser.logits(xt, torch.zeros(1)).float()
    logits[..., whole.denoiser.mask_id] = -torch.inf
    random = torch.Generator().manual_seed(0)
    drawn = torch.multinomial(logits[0].softmax(-1), 8, replacement=True, generator=random).T
    found = whole.nce.energies(torch.cat((text, drawn))[None], xt, torch.zeros(1))[0]
    assert found[0] < 0 < found[1:].min()
    assert sum(p.numel() for p in whole.nce.parameters()) * 2 < 15e6
