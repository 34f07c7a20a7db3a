"""The registry of formats: built-in ones, ones of other packages, and what is in none."""

import json
from importlib.metadata import EntryPoint
from pathlib import Path

import pytest
import torch

from edlm_engine import CallableDenoiser, Engine, GenerationConfig
from edlm_engine.checkpoints import formats as room
from edlm_engine.checkpoints import registry
from edlm_engine.checkpoints.registry import Loaded, Request, find_format, formats


class Uniform:
    """A format of another package: a file that holds a number of tokens."""

    name = "uniform"

    def matches(self, place):
        return (place / "tokens.txt").is_file()

    def load(self, place, request):
        tokens = int((place / "tokens.txt").read_text())

        def logits(xt, sigma):
            return torch.zeros(*xt.shape, tokens + 1)

        options = {"mask_id": tokens, "vocab_size": tokens + 1, "length": 5}
        return Loaded(CallableDenoiser(logits, **options))


@pytest.fixture
def with_uniform(monkeypatch):
    point = EntryPoint("uniform", f"{__name__}:Uniform", registry.GROUP)
    monkeypatch.setattr(EntryPoint, "load", lambda self: Uniform)
    monkeypatch.setattr(registry, "entry_points", lambda group: [point])
    registry.formats.cache_clear()
    yield
    registry.formats.cache_clear()


def test_a_format_of_another_package(tmp_path, with_uniform):
    (tmp_path / "tokens.txt").write_text("7")
    out = Engine.from_pretrained(tmp_path).generate(2, config=GenerationConfig(steps=2))
    assert out.sequences.shape == (2, 5) and (out.sequences < 7).all()
    assert formats()[0].name == "uniform"


def test_each_file_of_the_room_is_listed():
    files = {path.stem for path in Path(room.__file__).parent.glob("*.py")} - {"__init__"}
    listed = {line.split(":")[0].rpartition(".")[2] for line in registry.BUILT_IN}
    assert listed == files
    names = [format.name for format in formats()]
    assert len(set(names)) == len(names) == len(registry.BUILT_IN)


def test_what_is_in_no_format(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model at .*nowhere: looked for"):
        find_format(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="it is empty"):
        find_format(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "mdlm"}))
    with pytest.raises(ValueError, match=r"found model_type 'mdlm'; formats: adapted, native, "):
        find_format(tmp_path)
    (tmp_path / "notes.txt").write_text("words")
    with pytest.raises(ValueError, match=r"found \.txt"):
        find_format(tmp_path / "notes.txt")


def test_requests_are_checked():
    assert Request(device="meta").meta and not Request().meta
    with pytest.raises(ValueError, match='weights must be "ema" or "raw", got "newest"'):
        Request(weights="newest")
