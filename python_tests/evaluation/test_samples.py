"""Judged samples: units that go on where they stopped, their figures, and settings by name."""

import json
import sys
import types
from dataclasses import replace

import pytest
import torch
from enumeration import TinyDenoiser
from tiny_llama import save_tiny_llama
from tiny_models import TableAR, table_denoiser
from tokenizers import Tokenizer as BPE
from tokenizers import decoders, models

from edlm_engine import ARResidualEnergy, Engine, GenerationConfig
from edlm_engine.checkpoints.tokenizer import Tokenizer
from edlm_engine.evaluation import units
from edlm_engine.evaluation.joint import joint_nats
from edlm_engine.evaluation.judge import Judge
from edlm_engine.evaluation.metrics import distinct, repetition, token_entropy
from edlm_engine.evaluation.samples import evaluate_samples
from edlm_engine.evaluation.settings import engine_settings
from edlm_engine.evaluation.summary import table

pytestmark = pytest.mark.usefixtures("single_thread")

PLAIN = GenerationConfig(steps=2, num_candidates=1)
CORRECTED = GenerationConfig(steps=2, num_candidates=4)


@pytest.fixture(scope="module")
def engines():
    tiny = TinyDenoiser(vocab=4, length=3, mask_id=1)
    bpe = BPE(models.WordLevel({"<|endoftext|>": 0, "<mask>": 1, "a": 2, "b": 3}))
    bpe.decoder = decoders.WordPiece(prefix="##")
    ar = Engine(table_denoiser(tiny), ARResidualEnergy(TableAR(4, 3)), Tokenizer(bpe))
    return {"ar": ar, "none": Engine(ar.denoiser, None, ar.tokenizer)}


@pytest.fixture(scope="module")
def judge(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judge")
    save_tiny_llama(folder)
    return Judge.load(folder)


def test_the_figures_are_those_of_the_texts(engines, judge, tmp_path):
    summaries, whole = evaluate_samples(
        engines, [PLAIN, CORRECTED], tmp_path, judge=judge, num=12, chunk=4, seed=5
    )
    names = ["MDLM N=L", "MDLM N=2", "ar N=2 K=4 w=1.0"]
    assert whole and [s["name"] for s in summaries] == names
    engine, corrected = engines["ar"], summaries[2]
    out = engine.generate(12, config=CORRECTED, seed=range(5, 17))
    rates = judge.nats_per_byte(out.texts)
    assert corrected["sequences"] == 12
    measured = corrected["measures"]
    assert measured["judge"]["mean"] == pytest.approx(rates.mean().item())
    assert measured["judge"]["stderr"] == pytest.approx(rates.std().item() / 12**0.5)
    for name, values in {
        "entropy": token_entropy(out.sequences),
        "repetition_2": repetition(out.sequences, 2),
        "nfe": out.nfe.double(),
        "energy_evaluations": out.energy_evaluations.double(),
        "ess": out.ess.double().nanmean(1),
        "joint": joint_nats(engine, out.sequences, seed=5),
    }.items():
        assert measured[name]["mean"] == pytest.approx(values.mean().item(), rel=1e-5)
    assert corrected["distinct_2"] == distinct(out.sequences, 2)
    other = judge.nats_per_byte(engine.generate(12, config=PLAIN, seed=range(5, 17)).texts)
    one = judge.nats_per_byte(
        engine.generate(12, config=replace(PLAIN, steps=None), seed=range(5, 17)).texts
    )
    for summary, mine in ((summaries[1], other), (corrected, rates)):
        gap = summary["versus"]["judge"]
        assert gap["mean"] == pytest.approx((mine - one).mean().item())
        assert gap["stderr"] == pytest.approx((mine - one).std().item() / 12**0.5)
    assert "kl" in summaries[1]["measures"] and "kl" not in measured
    assert summaries[0]["measures"]["joint_gap"]["mean"] == 0
    assert json.loads((tmp_path / "report.json").read_text())["settings"] == summaries
    shown = table(summaries)
    assert all(name in shown for name in names) and "judge, ar N=2 K=4 w=1.0 less MDLM N=L" in shown


def test_a_run_goes_on_where_it_was_cut_short(engines, tmp_path, monkeypatch):
    options = {"num": 4, "chunk": 2, "joint_draws": 0}
    made = []

    def cut_short(file, content):
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(file)
        write(file, content)

    write = units.write_json
    monkeypatch.setattr(units, "write_json", cut_short)
    with pytest.raises(KeyboardInterrupt):
        evaluate_samples(engines, [PLAIN, CORRECTED], tmp_path, **options)
    monkeypatch.setattr(units, "write_json", write)
    drawn = []
    generate = Engine.generate
    monkeypatch.setattr(
        Engine, "generate", lambda *a, **k: drawn.append(k["seed"]) or generate(*a, **k)
    )
    summaries, whole = evaluate_samples(engines, [PLAIN, CORRECTED], tmp_path, **options)
    # The manifest and one unit were written, the second unit was lost; three of four are made now.
    assert whole and drawn == [[0, 1], [2, 3], [2, 3]]
    fresh, _ = evaluate_samples(engines, [PLAIN, CORRECTED], tmp_path / "fresh", **options)
    assert [s["measures"] for s in summaries] == [s["measures"] for s in fresh]
    drawn.clear()
    more, _ = evaluate_samples(engines, [PLAIN], tmp_path, **options | {"num": 6})
    assert drawn == [[4, 5]] and more[0]["sequences"] == 6


def test_the_time_may_run_out(engines, tmp_path):
    options = {"num": 4, "chunk": 2, "joint_draws": 0}
    summaries, whole = evaluate_samples(engines, [PLAIN], tmp_path, minutes=0.0, **options)
    assert not whole and summaries == []


def test_another_evaluation_is_not_mixed_in(engines, tmp_path):
    options = {"num": 2, "chunk": 2, "joint_draws": 0}
    evaluate_samples(engines, [PLAIN], tmp_path, manifest={"model": "x"}, **options)
    with pytest.raises(ValueError, match="holds another evaluation: model was 'x', is 'y'"):
        evaluate_samples(engines, [PLAIN], tmp_path, manifest={"model": "y"}, **options)
    with pytest.raises(ValueError, match="chunk was 2, is 1"):
        evaluate_samples(
            engines, [PLAIN], tmp_path, manifest={"model": "x"}, **options | {"chunk": 1}
        )
    with pytest.raises(ValueError, match="num must be a multiple of the chunk, got 3 and 2"):
        evaluate_samples(engines, [PLAIN], tmp_path, **options | {"num": 3})


def test_settings_that_are_the_same_are_one(engines):
    wide = [replace(CORRECTED, window=w, num_candidates=k) for w in (0.0, 0.5) for k in (1, 2)]
    settings = engine_settings(engines, [(label, c) for label in engines for c in wide])
    assert [s.name for s in settings] == ["MDLM N=2", "ar N=2 K=2 w=0.5"]
    assert settings[0].config is not None and settings[1].config is None
    local = replace(CORRECTED, correction="local")
    names = [s.name for s in engine_settings(engines, [("ar", local)])]
    assert names == ["ar N=2 K=4 w=1.0 correction=local"]
    idle = replace(CORRECTED, num_candidates=1, correction="smc", energy_temperature=2.0)
    assert engine_settings(engines, [("ar", idle)])[0].key == settings[0].key
    hot = engine_settings(engines, [("none", replace(PLAIN, temperature=0.5, top_k=3))])[0]
    assert hot.name == "MDLM N=2 T=0.5 top_k=3" and hot.key.startswith("MDLM-N=2-T=0.5")
    assert hot.key != settings[0].key


def test_mauve_takes_the_judges_features(engines, judge, tmp_path, monkeypatch):
    """With a library of that name that tells what it was given."""
    given = []

    def compute_mauve(p, q, **options):
        given.append((p.shape, q.shape))
        return types.SimpleNamespace(mauve=0.25)

    library = types.ModuleType("mauve")
    library.compute_mauve = compute_mauve
    monkeypatch.setitem(sys.modules, "mauve", library)
    options = {"judge": judge, "num": 20, "chunk": 20, "mauve": True}
    summaries, _ = evaluate_samples(engines, [PLAIN], tmp_path, **options)
    assert given == [((20, 16), (20, 16))]
    assert summaries[1]["mauve"] == 0.25 and "mauve" not in summaries[0]
    assert "MAUVE" in table(summaries)
    monkeypatch.setitem(sys.modules, "mauve", None)
    with pytest.raises(ImportError, match=r"MAUVE needs mauve-text.*edlm_engine\[evaluation\]"):
        evaluate_samples(engines, [PLAIN], tmp_path, **options)


def test_ess_is_that_of_the_energy_steps_alone(engines, tmp_path):
    late = replace(CORRECTED, steps=3, window=(0.0, 0.5))  # some texts have no step there
    summaries, _ = evaluate_samples(engines, [late], tmp_path, num=16, chunk=16, joint_draws=0)
    out = engines["ar"].generate(16, config=late, seed=range(16))
    least = [row[~row.isnan()].min().item() for row in out.ess if not row.isnan().all()]
    found = summaries[0]["measures"]["ess_least"]
    assert found["n"] == len(least) < 16
    assert found["mean"] == pytest.approx(torch.tensor(least).mean().item(), rel=1e-5)
