"""The Text8 setting in small, by the commands that users type, and what prepares it."""

import json
import lzma
import random
import zipfile

import pytest

from edlm_engine.checkpoints.native import load_model
from edlm_engine.cli import main
from edlm_engine.training.prepare import prepare_text8

WORDS = ["anarchism", "originated", "as", "a", "term", "of", "abuse", "first", "used", "against"]


@pytest.fixture(scope="module")
def text():
    chosen = random.Random(0).choices(WORDS, k=2000)
    every = (
        " zebra jumps over quick vixen bold hydra weights claims"  # the letters that WORDS lacks
    )
    return every + " " + " ".join(chosen)


def run(*args):
    assert main([*map(str, args)]) == 0


def test_from_text8_to_bits_per_character_and_samples(text, tmp_path, capsys):
    (tmp_path / "text8.xz").write_bytes(lzma.compress(text.encode()))
    data, pair = tmp_path / "data", tmp_path / "pair"
    run("prepare", "text8", tmp_path / "text8.xz", data)
    common = ["--no-unwrap", "--length", 16, "--batch-size", 8, "--threads", 1]
    common += ["--data", data / "train.txt", data / "valid.txt", "--held-out", "valid.txt"]
    common += ["--final-windows", 8, "--steps", 3]
    sizes = ["--hidden-dim", 16, "--blocks", 1, "--heads", 1, "--cond-dim", 4]
    run(
        *("train", "denoiser", *common, *sizes, "--tokenizer", "characters"),
        *("--out", tmp_path / "den"),
    )
    tokens = tmp_path / "den" / "tokenizer.json"
    run("train", "ar", *common, *sizes, "--tokenizer", tokens, "--out", tmp_path / "ar")
    learned = tmp_path / "learned"
    run("train", "energy", *common, "--denoiser", tmp_path / "den", "--out", learned)
    run("bundle", tmp_path / "den", tmp_path / "ar", pair, "--energy", learned)
    denoiser = load_model(pair / "denoiser")
    assert denoiser.vocab_size == 28 and denoiser.mask_id == 27
    capsys.readouterr()
    options = ["--model", pair, "--data", data / "test.txt", "--no-unwrap", "--json"]
    small = ["--windows", 2, "--draws", 1, "--pool", 2, "--candidates", 2, "--threads", 1]
    for energy in ("ar", "nce"):
        run("evaluate", "likelihood", *options, *small, "--energy", energy)
        found = json.loads(capsys.readouterr().out)
        bits = found["denoiser"]["bits_per_character"]
        assert bits == found["denoiser"]["bits_per_token"] and 3.5 < bits < 6
        assert ("ar" in found and found["ar"] is not None) == (energy == "ar")
    several = ["--energy", "ar", "nce", "--candidates", 1, 2, "--steps", 4, "--num", 4]
    several += ["--batch-size", 4, "--judge", "none", "--threads", 1, "--joint-draws", 1, "--json"]
    run("evaluate", "samples", "--model", pair, *several, "--out", tmp_path / "samples")
    summaries = json.loads(capsys.readouterr().out)
    assert {s["facts"].get("energy") for s in summaries} == {"none", "ar", "nce"}
    run("generate", "--model", pair, "--energy", "ar", "--steps", 4, "--prompt", "the ", "--json")
    made = json.loads(capsys.readouterr().out)["text"]
    assert made.startswith("the ") and len(made) == 16 and set(made) <= set(text)
    assert main(["generate", "--model", str(pair), "--prompt", "The"]) == 2
    assert "['T']" in capsys.readouterr().err


@pytest.mark.parametrize("suffix", ["", ".xz", ".zip"])
def test_parts_are_the_text_in_order(text, tmp_path, suffix):
    source = tmp_path / f"text8{suffix}"
    if suffix == ".zip":
        with zipfile.ZipFile(source, "w") as packed:
            packed.writestr("text8", text)
    else:
        source.write_bytes(lzma.compress(text.encode()) if suffix else text.encode())
    counts = prepare_text8(source, tmp_path / "out")
    files = [tmp_path / "out" / name for name in ("train.txt", "valid.txt", "test.txt")]
    assert "".join(file.read_text() for file in files) == text
    assert [file.stat().st_size for file in files] == list(counts.values())
    assert (
        counts["train.txt"] == round(0.9 * len(text)) and len(list(files[0].parent.iterdir())) == 3
    )


@pytest.mark.parametrize("bad", ["Caps and more of them", "a line\nand another one", "word " * 2])
def test_what_is_not_text8_is_refused(tmp_path, bad):
    (tmp_path / "text8").write_text(bad)
    with pytest.raises(ValueError, match="source must be"):
        prepare_text8(tmp_path / "text8", tmp_path / "out")
    assert not (tmp_path / "out").exists()
