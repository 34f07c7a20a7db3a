"""`edlm demo` on the small pair: four texts with their figures, the given words kept."""

import re

from edlm_engine import Engine
from edlm_engine.checkpoints import base as bases
from edlm_engine.evaluation import demo


def test_the_small_pair_is_shown_where_no_base_is(tmp_path, monkeypatch, capsys, caplog):
    monkeypatch.setattr(bases, "REAL_MODELS", tmp_path)
    monkeypatch.setattr(bases, "_package_files", lambda base: [])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr(demo, "STEPS", 4)
    caplog.set_level("INFO")
    demo.demo(seed=3)
    shown = capsys.readouterr().out
    assert "small bundled pair is shown: no base model smollm2" in caplog.text
    figures = re.findall(r"log p_AR (-\d+\.\d\d) nats a token(, mean ESS \d\.\d\d of 4)?", shown)
    assert len(figures) == 4 and [bool(ess) for _, ess in figures] == [False, True, False, True]
    filled = shown.split("Its gaps filled in")[1:]
    kept = re.split(r"\[[^]]*\]", " ".join(demo.GAPS.split()))
    for text in filled:
        text = " ".join(text.split())
        assert all(words.strip() in text for words in kept)
        assert text.count("[") == demo.GAPS.count("[")


def test_the_canvas_hides_the_gaps_and_nothing_else():
    engine = Engine.from_pretrained()
    canvas, pieces = demo.gap_canvas(engine)
    mask = engine.denoiser.mask_id
    tokens = [token for _, _, ids in pieces for token in ids]
    hidden = [gap for _, gap, ids in pieces for _ in ids]
    assert canvas[0].tolist() == [mask if h else t for t, h in zip(tokens, hidden, strict=True)]
    assert engine.tokenizer.decode(tokens) == demo.GAPS.replace("[", "").replace("]", "")
