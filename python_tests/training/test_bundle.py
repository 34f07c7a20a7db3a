"""Two runs put together."""

import dataclasses
import json

import pytest
import torch

from edlm_engine.checkpoints.bundle import load_bundle
from edlm_engine.training.bundle import bundle
from edlm_engine.training.trainer import train


def test_bundle_of_two_runs(config, data, tmp_path):
    train("denoiser", config)
    tokenizer = str(tmp_path / "run" / "tokenizer.json")
    train("ar", dataclasses.replace(config, out=str(tmp_path / "ar"), tokenizer=tokenizer))
    out = tmp_path / "bundle"
    recipe = bundle(tmp_path / "run", tmp_path / "ar", out, [data])
    assert json.loads((out / "recipe.json").read_text()) == recipe
    whole = load_bundle(out, energy="ar")
    assert whole.denoiser.head[0].dtype == torch.bfloat16
    assert whole.tokenizer.vocab_size == whole.ar.vocab_size == whole.denoiser.mask_id
    for kind in ("denoiser", "ar"):
        trained = json.loads((tmp_path / {"ar": "ar"}.get(kind, "run") / "recipe.json").read_text())
        shipped = recipe[kind]["held_out"]["nats_per_token"]
        assert shipped == pytest.approx(trained["held_out"]["nats_per_token"], abs=0.02)
    other = dataclasses.replace(config, out=str(tmp_path / "other"), vocab_size=262, steps=2)
    train("ar", other)
    with pytest.raises(ValueError, match="must share one tokenizer"):
        bundle(tmp_path / "run", tmp_path / "other", tmp_path / "bad", [data])
