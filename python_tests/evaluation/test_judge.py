"""The judge against the judging model's own loss, and in the comparison with and without energy."""

import pytest
import torch
from tiny_llama import save_tiny_llama
from tokenizers import Tokenizer as BPE
from tokenizers import decoders, models

from edlm_engine import ARResidualEnergy, CallableDenoiser, Engine, GenerationConfig
from edlm_engine.checkpoints.tokenizer import Tokenizer
from edlm_engine.evaluation.compare import compare_energy, table
from edlm_engine.evaluation.judge import Judge
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
    with pytest.raises(FileNotFoundError, match="no base model at"):
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
