"""The MDLM family as published: every layout against the network written down once more."""

import json

import pytest
import torch
from mdlm_layouts import (
    BARE_CONFIG,
    HUB_CONFIG,
    LENGTH,
    MASK,
    VOCAB,
    restated,
    save,
    tensors,
)
from safetensors.torch import load_file, save_file

from edlm_engine import Engine, GenerationConfig
from edlm_engine.checkpoints.bundle import load_ar, load_bundle, load_for_sampling
from edlm_engine.models import AutoregressiveTransformer, DiT
from edlm_engine.models.dit import FoldedDiT

PREFIX = "backbone."


def canvas(rows=3, seed=0):
    random = torch.Generator().manual_seed(seed)
    xt = torch.randint(MASK, (rows, LENGTH), generator=random)
    xt[torch.rand(xt.shape, generator=random) < 0.5] = MASK
    return xt


def in_shards(folder, weights, save_one, kind):
    """The same tensors in two files under an index."""
    names = sorted(weights)
    parts = names[::2], names[1::2]
    files = [f"{kind[0]}-0000{i + 1}-of-00002{kind[1]}" for i in range(2)]
    for file, part in zip(files, parts, strict=True):
        save_one({name: weights[name] for name in part}, folder / file)
    where = {name: file for file, part in zip(files, parts, strict=True) for name in part}
    index = {"metadata": {"total_size": 1}, "weight_map": where}
    (folder / f"{kind[0]}{kind[1]}.index.json").write_text(json.dumps(index))


def hub_folder(folder):
    return save(folder, HUB_CONFIG, tensors(prefix=PREFIX))


def bare_folder(folder):
    return save(folder, BARE_CONFIG, tensors())


def sharded_folder(folder):
    hub_folder(folder)
    in_shards(folder, tensors(prefix=PREFIX), save_file, ("model", ".safetensors"))
    (folder / "model.safetensors").unlink()
    return folder


def torch_folder(folder):
    hub_folder(folder)
    (folder / "model.safetensors").unlink()
    torch.save(tensors(prefix=PREFIX), folder / "pytorch_model.bin")
    return folder


def sharded_torch_folder(folder):
    torch_folder(folder)
    in_shards(folder, tensors(prefix=PREFIX), torch.save, ("pytorch_model", ".bin"))
    (folder / "pytorch_model.bin").unlink()
    return folder


LAYOUTS = [hub_folder, bare_folder, sharded_folder, torch_folder, sharded_torch_folder]


@pytest.mark.parametrize("layout", LAYOUTS)
@torch.no_grad()
def test_every_layout_is_the_network_written_down_again(tmp_path, layout):
    folder, xt = layout(tmp_path / "model"), canvas()
    wanted = restated(tensors(), xt).float()
    plain = load_bundle(folder).denoiser
    folded = load_for_sampling(folder, dtype=torch.float32).denoiser
    assert type(plain) is DiT and type(folded) is FoldedDiT
    for denoiser in (plain, folded):
        assert (denoiser.mask_id, denoiser.vocab_size, denoiser.length) == (MASK, VOCAB, LENGTH)
        torch.testing.assert_close(denoiser.logits(xt, torch.ones(3)), wanted, rtol=0, atol=2e-4)
    assert plain.config.cond_dim == 8


@pytest.mark.parametrize("layout", [hub_folder, bare_folder])
def test_it_generates(tmp_path, layout):
    engine = Engine.from_pretrained(layout(tmp_path / "model"))
    out = engine.generate(2, config=GenerationConfig(steps=4))
    assert out.sequences.shape == (2, LENGTH) and (out.sequences < MASK).all()


@torch.no_grad()
def test_time_conditioning_is_kept(tmp_path):
    folder = save(tmp_path, HUB_CONFIG | {"time_conditioning": True}, tensors(prefix=PREFIX))
    denoiser, sigma = load_for_sampling(folder, dtype=torch.float32).denoiser, torch.rand(3)
    assert type(denoiser) is DiT
    wanted = restated(tensors(), canvas(), sigma).float()
    torch.testing.assert_close(denoiser.logits(canvas(), sigma), wanted, rtol=0, atol=2e-4)


@torch.no_grad()
def test_a_bare_folder_without_modulation_is_left_to_right(tmp_path):
    save(tmp_path / "ar", BARE_CONFIG, tensors(causal=True))
    model, tokens = load_ar(tmp_path / "ar"), canvas() % MASK
    assert type(model) is AutoregressiveTransformer and model.forbidden_id == MASK
    assert model.first_position == 1
    wanted = restated(tensors(causal=True), tokens, causal=True).float()[:, :-1]
    torch.testing.assert_close(model.logits(tokens)[:, 1:], wanted, rtol=0, atol=2e-4)


def test_a_pair_that_lies_side_by_side(tmp_path):
    bare_folder(tmp_path / "mdlm")
    save(tmp_path / "ar", BARE_CONFIG, tensors(causal=True))
    engine = Engine.from_pretrained(tmp_path / "mdlm", energy="coar", dtype=torch.float32)
    out = engine.generate(2, config=GenerationConfig(steps=4, num_candidates=3))
    assert engine.energy.carry_over and (out.energy_evaluations > 0).all()


def test_a_scorer_is_no_denoiser_and_the_other_way_round(tmp_path):
    save(tmp_path / "ar", BARE_CONFIG, tensors(causal=True))
    with pytest.raises(ValueError, match=r"ar must hold a denoiser, it is a left-to-right"):
        load_bundle(tmp_path / "ar")
    bare_folder(tmp_path / "dit")
    with pytest.raises(ValueError, match=r"dit must hold a left-to-right model, got a DiT"):
        load_bundle(tmp_path / "dit", energy=tmp_path / "dit")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model_type": "DUO"}, "DUO: uniform-state diffusion"),
        ({"model_type": "sedd"}, "score-entropy"),
        ({"model_type": "bd3lm", "block_size": 4}, "bd3lm: block diffusion"),
        ({"n_heads": "two"}, r"config.json must have integers \['n_heads'\]"),
        ({"n_heads": 3}, "hidden_dim must be a multiple"),
        (
            {"n_blocks": 3},
            r"missing weights \['backbone.blocks.2.ada.* and 2 more",
        ),
        ({"hidden_dim": 32}, r"blocks.0.adaLN_modulation.bias must be \[192\], got \[96\]"),
        ({"vocab_size": 15}, r"vocab_embed.embedding must be \[15, 16\], got \[14, 16\]"),
    ],
)
def test_other_kinds_and_other_sizes_are_named(tmp_path, change, message):
    save(tmp_path, HUB_CONFIG | change, tensors(prefix=PREFIX))
    with pytest.raises(ValueError, match=message):
        load_bundle(tmp_path)


@pytest.mark.parametrize("name", ["duo", "uniform", "absorb"])
def test_bare_folders_of_other_kinds_are_known_by_their_name(tmp_path, name):
    with pytest.raises(ValueError, match=rf"{name} is {name}: (uniform-state|block) diffusion"):
        load_bundle(bare_folder(tmp_path / name))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda w: w.pop("backbone.blocks.1.norm2.weight"),
            r"missing weights \['backbone.blocks.1",
        ),
        (
            lambda w: w.update({"backbone.blocks.0.gate": torch.ones(1)}),
            r"unexpected.*blocks.0.gate",
        ),
        (lambda w: w.update(extra=torch.ones(1)), r"unexpected weights \['extra'\].*'backbone.'"),
        (
            lambda w: w.update({"backbone.blocks.0.attn_out.weight": torch.ones(16, 15)}),
            r"blocks.0.attn_out.weight must be \[16, 16\], got \[16, 15\]; get the files again",
        ),
        (
            lambda w: w.update({"backbone.rotary_emb.inv_freq": torch.ones(4)}),
            "inv_freq must be those of base 10000",
        ),
        (lambda w: w.pop("backbone.vocab_embed.embedding"), r"missing weights \['vocab_emb"),
    ],
)
def test_wrong_weights_are_named(tmp_path, change, message):
    hub_folder(tmp_path)
    weights = load_file(tmp_path / "model.safetensors")
    change(weights)
    save_file(weights, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match=rf"model.safetensors.*{message}"):
        load_bundle(tmp_path)


def test_shards_that_are_missing_or_elsewhere(tmp_path):
    sharded_folder(tmp_path)
    (tmp_path / "model-00002-of-00002.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file .*00002-of-00002.safetensors, which"):
        load_bundle(tmp_path)
    index = tmp_path / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"a": "../outside.safetensors"}}))
    with pytest.raises(ValueError, match=r"must name files beside itself, got '../outside"):
        load_bundle(tmp_path)


class Harmful:
    """What a hostile pickle would do: write a file as it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_with_code_is_refused_and_not_run(tmp_path):
    torch_folder(tmp_path)
    weights = torch.load(tmp_path / "pytorch_model.bin")
    weights["backbone.payload"] = Harmful(tmp_path / "written")
    torch.save(weights, tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=r"holds more than weights \(.*open\) and was not read"):
        load_bundle(tmp_path)
    assert not (tmp_path / "written").exists()
    torch.load(tmp_path / "pytorch_model.bin", weights_only=False)  # the file does carry code
    assert (tmp_path / "written").exists()


@pytest.mark.parametrize("file", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("keep", [0, 100, 0.5])
def test_truncated_files_are_named(tmp_path, file, keep):
    (hub_folder if file.endswith("safetensors") else torch_folder)(tmp_path)
    whole = (tmp_path / file).read_bytes()
    (tmp_path / file).write_bytes(whole[: int(keep * len(whole)) if keep == 0.5 else keep])
    with pytest.raises(ValueError, match=rf"{file} is damaged"):
        load_bundle(tmp_path)


def test_a_torch_file_of_something_else(tmp_path):
    torch_folder(tmp_path)
    torch.save([torch.ones(2)], tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match="must hold tensors by name and nothing else"):
        load_bundle(tmp_path)
