"""Saving and loading: nothing changes on the way, and nothing wrong is accepted."""

import json

import pytest
import torch
from safetensors.torch import load_file, save_file

from edlm_engine.checkpoints.native import load_model, save_model
from edlm_engine.models import (
    ARConfig,
    AutoregressiveTransformer,
    DiT,
    DiTConfig,
    EnergyConfig,
    EnergyTransformer,
)

SIZES = {"length": 8, "hidden_dim": 16, "n_blocks": 2, "n_heads": 2}


def dit(tied=True, **changes):
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "mask_id": 10, "cond_dim": 4, **SIZES, **changes}
    return DiT(DiTConfig(**sizes, tie_word_embeddings=tied)).eval()


def ar(tied=True, bos_id=0):
    torch.manual_seed(1)
    config = ARConfig(vocab_size=10, **SIZES, tie_word_embeddings=tied, bos_id=bos_id)
    return AutoregressiveTransformer(config).eval()


def tokens(rows=3, length=8):
    return torch.randint(10, (rows, length), generator=torch.Generator().manual_seed(2))


def edit_config(folder, change):
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def edit_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize("tied", [True, False])
def test_round_trip_is_exact(tmp_path, tied):
    for name, model, args in (
        ("dit", dit(tied), (tokens(), torch.zeros(3))),
        ("ar", ar(tied), (tokens(),)),
    ):
        save_model(model, tmp_path / name)
        files = sorted(file.name for file in (tmp_path / name).iterdir())
        assert files == ["config.json", "model.safetensors"]
        again = load_model(tmp_path / name)
        assert type(again) is type(model) and again.config == model.config and not again.training
        assert torch.equal(again.logits(*args), model.logits(*args))


def test_tied_head_is_stored_once_and_tied_again(tmp_path):
    save_model(dit(tied=True), tmp_path)
    assert "output_layer.linear.weight" not in load_file(tmp_path / "model.safetensors")
    again = load_model(tmp_path)
    assert again.head[0] is again.vocab_embed.embedding


def test_dtypes(tmp_path):
    model = dit()
    save_model(model, tmp_path, dtype=torch.bfloat16)
    stored = load_file(tmp_path / "model.safetensors")
    assert stored.pop("rotary_emb.inv_freq").dtype == torch.float32
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    assert load_model(tmp_path).head[0].dtype == torch.bfloat16
    again = load_model(tmp_path, dtype=torch.float32)
    assert again.head[0].dtype == torch.float32
    assert torch.equal(again.head[0], model.head[0].bfloat16().float())
    assert torch.equal(again.rotary_emb.inv_freq, model.rotary_emb.inv_freq)


def test_save_replaces_a_model(tmp_path):
    save_model(dit(), tmp_path)
    save_model(ar(), tmp_path)
    assert isinstance(load_model(tmp_path), AutoregressiveTransformer)


def test_unknown_path_names_what_was_looked_for(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere: looked for .*config.json"):
        load_model(tmp_path / "nowhere")
    save_model(dit(), tmp_path)
    (tmp_path / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"looked for .*model.safetensors"):
        load_model(tmp_path)


@pytest.mark.parametrize("keep", [0, 7, 100, 0.5, -1])
def test_truncated_weights_name_the_file(tmp_path, keep):
    save_model(dit(), tmp_path)
    file = tmp_path / "model.safetensors"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(keep * len(whole)) if isinstance(keep, float) else keep])
    with pytest.raises(ValueError, match=r"model.safetensors is damaged"):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda t: t.pop("blocks.1.norm2.weight"), r"missing weights \['blocks.1.norm2.weight'\]"),
        (lambda t: t.update(extra=torch.ones(1)), r"unexpected weights \['extra'\]"),
        (
            lambda t: t.update({"blocks.0.attn_out.weight": torch.ones(16, 15)}),
            r"blocks.0.attn_out.weight must be \[16, 16\], got \[16, 15\]",
        ),
        (
            lambda t: t.update({"output_layer.linear.weight": torch.ones(11, 16)}),
            r"unexpected weights \['output_layer.linear.weight'\]",
        ),
        (
            lambda t: t.update({"blocks.0.attn_out.weight": torch.ones(16, 16).long()}),
            r"must hold floating-point weights, got blocks.0.attn_out.weight torch.int64",
        ),
    ],
)
def test_wrong_weights_are_named(tmp_path, change, match):
    save_model(dit(), tmp_path)
    edit_weights(tmp_path, change)
    with pytest.raises(ValueError, match=match):
        load_model(tmp_path)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda c: c.pop("n_heads"), r"missing fields \['n_heads'\]"),
        (lambda c: c.update(colour="red"), r"unexpected fields \['colour'\]"),
        (lambda c: c.update(architecture="unet"), r"architecture must be one of .*got 'unet'"),
        (lambda c: c.update(n_heads=3), "config.json: hidden_dim must be a multiple"),
        (lambda c: c.update(dropout="high"), "config.json: dropout must be of type int or float"),
        (lambda c: c.update(mask_id=2.5), "config.json: mask_id must be of type int, got 2.5"),
        (lambda c: c.update(mask_id=True), "config.json: mask_id must be of type int, got True"),
        (lambda c: c.update(n_blocks=True), "config.json: n_blocks must be of type int, got True"),
        (
            lambda c: c.update(time_conditioning="no"),
            "config.json: time_conditioning must be of type bool, got 'no'",
        ),
        (
            lambda c: c.update(tie_word_embeddings=1),
            "config.json: tie_word_embeddings must be of type bool, got 1",
        ),
        (lambda c: c.update(architecture=["dit"]), r"architecture must be one of .*got \['dit'\]"),
        (lambda c: c.update(vocab_size=1, mask_id=0), "config.json: vocab_size must be >= 2"),
        (lambda c: c.update(vocab_size=2**62), "config.json: no model can have these sizes"),
        (lambda c: c.update(vocab_size=2**70), "config.json: no model can have these sizes"),
    ],
)
def test_wrong_config_is_named(tmp_path, change, match):
    save_model(dit(), tmp_path)
    edit_config(tmp_path, change)
    with pytest.raises(ValueError, match=match):
        load_model(tmp_path)


def test_too_many_blocks_are_found_before_they_are_built(tmp_path, monkeypatch):
    save_model(dit(), tmp_path)
    edit_config(tmp_path, lambda c: c.update(n_blocks=10**6))
    monkeypatch.setattr(DiT, "__init__", lambda *_: pytest.fail("was built"))
    with pytest.raises(ValueError, match=r"n_blocks must fit the \d+ weights .*, got 1000000"):
        load_model(tmp_path)


@pytest.mark.parametrize("text", ['{"architecture": ', "[1, 2]", "[" * 100_000])
def test_config_that_is_not_an_object(tmp_path, text):
    save_model(dit(), tmp_path)
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(ValueError, match=r"config\.json (is not JSON|must hold a JSON object)"):
        load_model(tmp_path)


def test_a_folded_denoiser_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="a folded denoiser has no layout on disk"):
        save_model(dit().folded(), tmp_path / "folded")
    assert not (tmp_path / "folded").exists()


def test_an_energy_round_trip_is_exact(tmp_path):
    config = EnergyConfig(vocab_size=11, mask_id=10, cond_dim=4, **SIZES, pad_id=3)
    model = EnergyTransformer(config).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter)
    save_model(model, tmp_path)
    assert json.loads((tmp_path / "config.json").read_text())["architecture"] == "nce"
    again = load_model(tmp_path)
    assert type(again) is EnergyTransformer and again.config == config
    for name, tensor in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    given = tokens(6).view(3, 2, 8), tokens(), torch.zeros(3)
    torch.testing.assert_close(again.energies(*given), model.energies(*given), rtol=1e-5, atol=0)
    edit_weights(tmp_path, lambda t: t.pop("energy_head.2.weight"))
    with pytest.raises(ValueError, match=r"missing weights \['energy_head.2.weight'\]"):
        load_model(tmp_path)
