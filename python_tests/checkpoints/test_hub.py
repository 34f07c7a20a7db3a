"""Ids of the hub, offline: found in a cache laid out as the hub's own, or told what to bring."""

import shutil
from fnmatch import fnmatch

import pytest
from mdlm_layouts import BARE_CONFIG, HUB_CONFIG, save, tensors
from tiny_llama import tiny_tokenizer

from edlm_engine import Engine, GenerationConfig
from edlm_engine.checkpoints.bundle import load_bundle
from edlm_engine.checkpoints.hub import Source, locate

ENDINGS = ("safetensors", "bin", "ckpt", "gguf")
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture(autouse=True)
def offline(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def cached(cache, repo, revision="main"):
    """The folder of a repository in a cache, as snapshot_download leaves it."""
    root = cache / f"models--{repo.replace('/', '--')}"
    (root / "refs").mkdir(parents=True)
    (root / "refs" / revision).write_text(COMMIT)
    folder = root / "snapshots" / COMMIT
    folder.mkdir(parents=True)
    return folder


def test_an_id_in_the_cache(tmp_path):
    save(cached(tmp_path, "someone/mdlm"), HUB_CONFIG, tensors(prefix="backbone."))
    engine = Engine.from_pretrained("someone/mdlm", cache_dir=tmp_path)
    out = engine.generate(config=GenerationConfig(steps=3))
    assert out.sequences.shape == (1, 12)
    place = locate("someone/mdlm", Source(cache_dir=tmp_path, local_files_only=True))
    assert place.name == COMMIT


def test_folders_and_files_of_a_repository(tmp_path):
    folder = cached(tmp_path, "someone/many")
    save(folder / "owt" / "mdlm", BARE_CONFIG, tensors())
    save(folder / "owt" / "ar", BARE_CONFIG, tensors(causal=True))
    for name, subfolder in (("someone/many", "owt/mdlm"), ("someone/many/owt/mdlm", None)):
        engine = Engine.from_pretrained(
            name, subfolder=subfolder, energy="someone/many/owt/ar", cache_dir=tmp_path
        )
        assert engine.energy.model.first_position == 1
    one = locate("someone/many/owt/mdlm/model.safetensors", Source(cache_dir=tmp_path))
    assert one.is_file()
    # A folder on disk takes the same word.
    assert load_bundle(folder / "owt" / "mdlm").denoiser.mask_id == 13
    assert locate(folder, Source(subfolder="owt/ar")) == folder / "owt" / "ar"


def test_a_pair_of_ours(tmp_path):
    folder = cached(tmp_path, "someone/pair")
    save(folder / "denoiser", HUB_CONFIG, tensors(prefix="backbone."))
    save(folder / "ar", BARE_CONFIG, tensors(causal=True))
    engine = Engine.from_pretrained("someone/pair", energy="ar", cache_dir=tmp_path)
    assert engine.energy.model.vocab_size == 14


def test_a_revision(tmp_path):
    save(cached(tmp_path, "someone/mdlm", "v2"), HUB_CONFIG, tensors(prefix="backbone."))
    engine = Engine.from_pretrained("someone/mdlm", revision="v2", cache_dir=tmp_path)
    assert engine.denoiser.mask_id == 13
    with pytest.raises(FileNotFoundError, match="no model at someone/mdlm"):
        Engine.from_pretrained("someone/mdlm", cache_dir=tmp_path)


@pytest.mark.parametrize("forbidden", ["env", "argument"])
def test_what_is_not_there_names_places_and_files(tmp_path, monkeypatch, forbidden):
    if forbidden == "argument":
        monkeypatch.delenv("HF_HUB_OFFLINE")
    with pytest.raises(FileNotFoundError) as caught:
        Engine.from_pretrained(
            "kuleshov-group/mdlm-owt",
            cache_dir=tmp_path,
            local_files_only=forbidden == "argument",
        )
    message = str(caught.value)
    assert message.startswith("no model at kuleshov-group/mdlm-owt: no such file or folder here")
    for part in (str(tmp_path), "config.json, model.safetensors", "the network is not asked"):
        assert part in message
    assert "huggingface.co/kuleshov-group/mdlm-owt" in message


def test_a_repository_without_its_weights(tmp_path):
    folder = cached(tmp_path, "someone/mdlm")
    save(folder, HUB_CONFIG, tensors(prefix="backbone."))
    (folder / "model.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"no model at someone/mdlm: .*bring config"):
        Engine.from_pretrained("someone/mdlm", cache_dir=tmp_path)


def test_the_network_is_asked_where_it_may_be(tmp_path, monkeypatch):
    """First the cache, then the network: safetensors, and pickles only where there are none."""
    monkeypatch.delenv("HF_HUB_OFFLINE")
    asked = []

    def snapshot_download(repo, *, allow_patterns, local_files_only, **options):
        assert not any(fnmatch(f"other/model.{end}", p) for end in ENDINGS for p in allow_patterns)
        pickles = any(fnmatch("pytorch_model.bin", pattern) for pattern in allow_patterns)
        asked.append((local_files_only, pickles))
        if not local_files_only and pickles:
            shutil.copy(tmp_path / "kept.bin", tmp_path / "repo" / "pytorch_model.bin")
        return str(tmp_path / "repo")

    import torch

    save(tmp_path / "repo", HUB_CONFIG, {})
    (tmp_path / "repo" / "model.safetensors").unlink()
    torch.save(tensors(prefix="backbone."), tmp_path / "kept.bin")
    monkeypatch.setattr("huggingface_hub.snapshot_download", snapshot_download)
    assert load_bundle("someone/mdlm").denoiser.mask_id == 13
    assert asked == [(True, False), (False, False), (False, True)]


def test_a_tokenizer_of_its_own(tmp_path):
    save(tmp_path / "mdlm", HUB_CONFIG, tensors(prefix="backbone."))
    folder = cached(tmp_path / "cache", "gpt2")
    tiny_tokenizer().save(str(folder / "tokenizer.json"))
    engine = Engine.from_pretrained(
        tmp_path / "mdlm", tokenizer="gpt2", cache_dir=tmp_path / "cache"
    )
    out = engine.generate(config=GenerationConfig(steps=3), prompt="a b")
    assert out.sequences[0, :2].tolist() == [2, 3] and out.texts is not None
    with pytest.raises(FileNotFoundError, match=r"no tokenizer at someone/none: .*tokenizer"):
        Engine.from_pretrained(tmp_path / "mdlm", tokenizer="someone/none")
    with pytest.raises(FileNotFoundError, match=r"no tokenizer at .*mdlm: looked for"):
        Engine.from_pretrained(tmp_path / "mdlm", tokenizer=tmp_path / "mdlm")


def test_the_tokenizer_of_the_energy(tmp_path):
    save(tmp_path / "mdlm", HUB_CONFIG, tensors(prefix="backbone."))
    save(tmp_path / "ar", BARE_CONFIG, tensors(causal=True))
    tiny_tokenizer().save(str(tmp_path / "ar" / "tokenizer.json"))
    assert Engine.from_pretrained(tmp_path / "mdlm", energy="ar").tokenizer.token_id("ab") == 4


def test_what_is_neither_path_nor_id(tmp_path, monkeypatch):
    with pytest.raises(FileNotFoundError, match=r"no model at .*nowhere: looked for .*config.json"):
        locate(tmp_path / "nowhere")
    (tmp_path / "folder").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError, match=r"no model at folder/name: looked for"):
        locate("folder/name")  # would be an id, were there no such folder
    with pytest.raises(FileNotFoundError, match="has no inside"):
        locate(tmp_path, Source(subfolder="inside"))
