"""Two runs put together."""

import dataclasses
import json

import pytest
import torch

from edlm_engine.checkpoints.bundle import load_bundle
from edlm_engine.models import EnergyTransformer
from edlm_engine.training.bundle import add_energy, bundle
from edlm_engine.training.config import EnergyTrainConfig
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


def test_bundle_with_an_energy(config, data, tmp_path):
    train("denoiser", config)
    tokenizer = str(tmp_path / "run" / "tokenizer.json")
    train("ar", dataclasses.replace(config, out=str(tmp_path / "ar"), tokenizer=tokenizer))
    shared = {f.name for f in dataclasses.fields(EnergyTrainConfig)} & set(vars(config))
    fields = {name: getattr(config, name) for name in shared - {"hidden_dim", "heads"}}
    fields |= {"out": str(tmp_path / "nce"), "denoiser": str(tmp_path / "run")}
    train("energy", EnergyTrainConfig(**fields))
    out = tmp_path / "bundle"
    recipe = bundle(tmp_path / "run", tmp_path / "ar", out, [data], tmp_path / "nce")
    assert list(recipe) == ["denoiser", "ar", "energy"]
    assert json.loads((out / "recipe.json").read_text()) == recipe
    energy = load_bundle(out, energy="nce").nce
    assert type(energy) is EnergyTransformer
    assert energy.vocab_embed.embedding.dtype == torch.bfloat16
    trained = json.loads((tmp_path / "nce" / "recipe.json").read_text())["held_out"]
    shipped = recipe["energy"]["held_out"]
    for name in ("nats_per_window", "gap"):
        assert shipped[name] == pytest.approx(trained[name], abs=0.05)
    assert 0 <= shipped["accuracy"] <= 1 and shipped["draws_per_window"] == 4
    with pytest.raises(ValueError, match=r"run must be of an energy, .* is of a denoiser"):
        add_energy(tmp_path / "run", out)
    with pytest.raises(FileNotFoundError, match="no training run at"):
        add_energy(tmp_path / "nowhere", out)
    (out / "tokenizer.json").write_bytes(b"{}")
    with pytest.raises(ValueError, match="must have its bundle's tokenizer"):
        add_energy(tmp_path / "nce", out)
