"""The judge against the judging model's own loss, and in the comparison with and without energy."""

import pytest
import torch
from tiny_llama import save_tiny_llama
from tokenizers import Tokenizer as BPE
from tokenizers import decoders, models

from edlm_engine import ARResidualEnergy, CallableDenoiser, Engine, GenerationConfig
from edlm_engine.checkpoints import base as bases
from edlm_engine.checkpoints.tokenizer import Tokenizer
from edlm_engine.evaluation import judge
from edlm_engine.evaluation.compare import compare_energy, table
from edlm_engine.evaluation.judge import Judge, independent_judge
from edlm_engine.models.causal_lm import CausalLMScorer


@pytest.fixture
def folder(tmp_path):
    save_tiny_llama(tmp_path)
    return tmp_path


@torch.no_grad()
def test_nats_per_byte_are_the_models_own_loss(folder):
    judge = Judge.load(folder)
    texts = ["a b ab", "b", "ab ab ab b a"]
    rates = judge.nats_per_byte(texts)
    for text, rate in zip(texts, rates.tolist(), strict=True):
        ids = torch.tensor([[0, *judge.tokenizer.encode(text)]])
        loss = judge.model.model(input_ids=ids, labels=ids).loss.item() * (ids.shape[1] - 1)
        assert rate == pytest.approx(loss / len(text), rel=1e-5)


def test_bytes_are_those_of_utf_8(folder):
    judge = Judge.load(folder)
    plain, accented = judge.nats_per_byte(["a", "é"]).tolist()
    assert plain > 0 and accented > 0
    ids = torch.tensor([judge.tokenizer.encode("é")])
    with torch.no_grad():
        log_p = judge.model.logits(ids).log_softmax(-1)[0, 0, ids[0, 0]].item()
    assert accented == pytest.approx(-log_p / 2, rel=1e-5)


def test_what_cannot_be_judged_is_named(folder, tmp_path):
    with pytest.raises(ValueError, match=r"texts must not be empty, texts \[1\] are"):
        Judge.load(folder).nats_per_byte(["a", ""])
    with pytest.raises(FileNotFoundError, match="no model at"):
        Judge.load(tmp_path / "nowhere")


def tiny_engine(folder):
    """A denoiser that likes the same words at all places, the tiny Llama as its energy."""
    model = CausalLMScorer.from_pretrained(folder)
    bpe = BPE(models.WordLevel({"<|endoftext|>": 0, "<unused>": 1, "a": 2, "b": 3, "ab": 4}))
    bpe.decoder = decoders.WordPiece(prefix="##")
    logits = torch.tensor([-5.0, 0.0, 1.0, 0.0, 1.0])
    denoiser = CallableDenoiser(
        lambda xt, sigma: logits.expand(*xt.shape, 5), mask_id=1, vocab_size=5, length=6
    )
    scorer = CausalLMScorer(model.model, 0, 1)
    return Engine(denoiser, ARResidualEnergy(scorer), Tokenizer(bpe)), scorer


def test_a_comparison_with_a_judge(folder):
    engine, scorer = tiny_engine(folder)
    config = GenerationConfig(steps=4, num_candidates=4)
    judge = Judge.load(folder)
    got = compare_energy(engine, scorer, num=8, config=config, judge=judge)
    out = engine.generate(8, config=config, seed=range(8))
    rates = judge.nats_per_byte(out.texts)
    assert got.with_energy.judge == pytest.approx(rates.mean().item())
    assert got.judge_gain == pytest.approx(got.without_energy.judge - got.with_energy.judge)
    assert "judge, nats per byte" in table(got) and "the judge's gain" in table(got)
    plain = compare_energy(engine, scorer, num=8, config=config)
    assert plain.judge_gain is None and "judge" not in table(plain)
    with pytest.raises(ValueError, match="a judge reads text"):
        compare_energy(
            Engine(engine.denoiser, engine.energy), scorer, num=2, config=config, judge=judge
        )


def test_texts_are_judged_alike_in_any_batch(folder, monkeypatch):
    """Shorter ones are padded behind, and their order is kept."""
    instance = Judge.load(folder)
    texts = ["a b ab", "b", "ab ab ab b a", "a", "", "b a b a b a b"]
    together = instance.nats(texts)
    monkeypatch.setattr(judge, "BATCH_TOKENS", 1)
    alone = torch.cat([instance.nats([text]) for text in texts])
    assert torch.allclose(together, alone, rtol=1e-6) and together[4] == 0
    assert torch.allclose(together, instance.nats(texts), rtol=1e-6)


@torch.no_grad()
def test_features_are_the_last_hidden_state_after_each_text(folder):
    instance = Judge.load(folder)
    texts = ["a b ab", "b"]
    for text, features in zip(texts, instance.features(texts), strict=True):
        ids = torch.tensor([[0, *instance.tokenizer.encode(text)]])
        states = instance.model.model.base_model(input_ids=ids).last_hidden_state
        assert torch.allclose(features, states[0, -1], atol=1e-5)


def test_a_text_longer_than_the_judge_reads_is_named(folder):
    with pytest.raises(ValueError, match=r"at most 31 tokens of the judge .*, text 1 has 32"):
        Judge.load(folder).nats(["a", "a " * 32])


def test_no_model_judges_its_own_choices(folder, tmp_path):
    engine, _ = tiny_engine(folder)
    other = tmp_path / "other"
    save_tiny_llama(other, initializer_range=0.3)
    assert independent_judge(other, [engine]).name == str(other)
    with pytest.raises(ValueError, match="is the energy's own model, or its base: give --judge"):
        independent_judge(folder, [engine])
    mixed = Engine(engine.denoiser, (lambda x0, xt, log_q, t: log_q) + 0.5 * engine.energy)
    with pytest.raises(ValueError, match="is the energy's own model"):
        independent_judge(folder, [mixed])
    rounded = Judge.load(folder, dtype=torch.bfloat16)
    rounded.model.bfloat16()
    assert judge.shares_head(rounded.model, engine.energy.model)
    assert not judge.shares_head(rounded.model, engine.denoiser)


def test_where_there_is_no_judge_it_is_said_what_to_do(folder, tmp_path, monkeypatch):
    engine, _ = tiny_engine(folder)
    monkeypatch.setattr(bases, "REAL_MODELS", tmp_path)
    monkeypatch.setattr(bases, "_package_files", lambda base: [])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(ValueError, match=r"there is no independent judge here: .* give --judge"):
        independent_judge(None, [engine])
    with pytest.raises(FileNotFoundError, match="no model at"):
        independent_judge(tmp_path / "nowhere", [engine])
