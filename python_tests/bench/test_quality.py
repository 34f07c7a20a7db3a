"""The experiments on tiny models: the laws of the samplers compared, and the page."""

import json
import math
import re
import types

import numpy as np
import pytest
import torch
from enumeration import TinyDenoiser, ancestral, p_value
from tiny_llama import save_tiny_llama
from tiny_models import TableAR, table_denoiser
from tokenizers import Tokenizer as BPE
from tokenizers import decoders, models

from bench.quality import experiments, samplers
from bench.quality.energies import over_time
from bench.quality.run import Asked, run
from bench.quality.samplers import Faults, faults_setting, left_to_right
from edlm_engine import ARResidualEnergy, CallableDenoiser, Engine
from edlm_engine.checkpoints.tokenizer import Tokenizer
from edlm_engine.evaluation.judge import Judge

pytestmark = pytest.mark.usefixtures("single_thread")

MASK, STEPS = 1, 3


@pytest.fixture(scope="module")
def engines():
    tiny = TinyDenoiser(vocab=4, length=3, mask_id=MASK)
    bpe = BPE(models.WordLevel({"<|endoftext|>": 0, "<mask>": 1, "a": 2, "b": 3}))
    bpe.decoder = decoders.WordPiece(prefix="##")
    ar = TableAR(4, 3, forbidden_id=MASK)
    denoiser = table_denoiser(tiny)
    made = {
        label: Engine(denoiser, ARResidualEnergy(ar, label == "coar"), Tokenizer(bpe))
        for label in ("ar", "coar")
    }
    return tiny, ar, made


def drawn(setting, calls=3, batch=4000):
    parts = [setting.draw(range(i * batch, (i + 1) * batch)).sequences for i in range(calls)]
    return torch.cat(parts).numpy()


def law(tiny, ar, candidates):
    times = np.linspace(1, 1e-5, STEPS + 1).tolist()
    start = (MASK,) * tiny.length
    return ancestral(tiny, start, times, lambda t: 0.0, ar.residual(MASK), candidates)


def test_the_released_loop_without_faults_has_the_law_of_the_engine(engines):
    tiny, ar, made = engines
    options = {"steps": STEPS, "candidates": 2, "energy_steps": True}
    setting = faults_setting("", made["ar"], Faults(), **options)
    assert p_value(drawn(setting), law(tiny, ar, 2)) > 1e-3
    plain = faults_setting("", made["ar"], Faults(), **options | {"energy_steps": False})
    assert p_value(drawn(plain), law(tiny, ar, 1)) > 1e-3
    out = setting.draw(range(5))
    again = setting.draw(range(5))
    assert (
        torch.equal(out.sequences, again.sequences)
        and (out.energy_evaluations == 2 * out.nfe).all()
    )
    assert ((out.ess >= 1) & (out.ess <= 2) | out.ess.isnan()).all()


@pytest.mark.parametrize(
    "faults",
    [
        Faults(plus_energy=True),
        Faults(mixed_rows=True),
        Faults(probabilities=True),
    ],
    ids=["sign", "rows", "probabilities"],
)
def test_each_fault_has_another_law(engines, faults):
    tiny, ar, made = engines
    setting = faults_setting("", made["ar"], faults, steps=STEPS, candidates=2, energy_steps=True)
    assert p_value(drawn(setting), law(tiny, ar, 2)) < 1e-6


@pytest.mark.parametrize("noise", ["exact", "float32", "bfloat16"])
def test_the_race_in_few_bits_loses_the_tail(noise, monkeypatch):
    """A fifth of the mass lies nine nats below the first token: in float32 it is still there."""
    logits = torch.full((2001,), -9.0)
    logits[0] = 0
    denoiser = CallableDenoiser(
        lambda xt, sigma: logits.expand(*xt.shape, -1), mask_id=2000, vocab_size=2001, length=4
    )
    energy = ARResidualEnergy(types.SimpleNamespace(first_position=0))
    monkeypatch.setattr(samplers, "sequence_log_probs", lambda model, x: torch.zeros(len(x)))
    options = {"steps": 2, "candidates": 1, "energy_steps": True}
    setting = faults_setting("", Engine(denoiser, energy), Faults(noise=noise), **options)
    tail = (setting.draw(range(800)).sequences > 0).double().mean().item()
    exact = 1999 * math.exp(-9) / (1 + 1999 * math.exp(-9))
    error = (exact * (1 - exact) / 3200) ** 0.5
    assert (abs(tail - exact) < 4 * error) == (noise != "bfloat16"), (tail, exact)


def test_left_to_right_has_the_law_of_the_ar_model(engines):
    _, ar, _ = engines
    texts = [tuple(x) for x in np.ndindex(4, 4, 4)]
    exact = {x: float(np.exp(ar.log_probs(x).sum())) for x in texts}
    assert p_value(left_to_right(ar, range(10_000), 3).sequences.numpy(), exact) > 1e-3


def test_energies_by_time():
    records = [{"t": t, "x": 10 * t} for t in (0.01, 0.125, 0.13, 0.2, 1.0)]
    points = over_time(records, "x")
    assert [p[0] for p in points] == [1 / 16, 3 / 16]  # the end of a bin belongs to it; one is none
    assert points[0][1] == pytest.approx((0.1 + 1.25) / 2)


def test_the_page(engines, tmp_path, monkeypatch):
    """All experiments, a few texts of each; a second run makes nothing and writes the same page."""
    _, _, made = engines
    save_tiny_llama(tmp_path / "judge")
    judge = Judge.load(tmp_path / "judge")
    for name, value in (("STEPS", (2, 4)), ("STEPS_WITH_ENERGY", (2,)), ("NOISE_STEPS", 4)):
        monkeypatch.setattr(experiments, name, value)
    asked = Asked(tmp_path / "units", tmp_path / "out", num=4, chunk=2, progress=False)
    text = torch.randint(2, 4, (4, 3), generator=torch.Generator().manual_seed(0))
    given = ("tiny", made, judge, {"models": "tiny"}, text)
    page = run(asked, *given)
    written = page.read_text()
    images = re.findall(r"\]\((\w+\.png)\)", written)
    assert len(images) == 6 and all((page.parent / image).is_file() for image in images)
    for shown in (
        "- models: tiny",
        "- texts of each setting: 4 to 4",
        "| ar N=2 K=4 w=1.0 | 4 |",
        "| AR, left to right | 4 |",
        "| 16 |",
        "| coar | 0.94 |",
        "| +E for -E | 4 |",
        "| EDLM-NCE | 2048 | 17.7 | 6.9 |",
    ):
        assert shown in written, shown
    results = json.loads((page.parent / "results.json").read_text())
    assert results["whole"] and len(results["settings"]) > 20
    monkeypatch.setattr(samplers, "_ReleasedLoop", None)
    monkeypatch.setattr(Engine, "generate", None)
    assert run(asked, *given).read_text() == written
