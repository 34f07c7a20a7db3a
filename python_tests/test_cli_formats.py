"""The command line on models of other layouts: info, convert, generate."""

import json

import pytest
from mdlm_layouts import BARE_CONFIG, HUB_CONFIG, MASK, energy_shapes, save, tensors
from tiny_llama import save_tiny_llama

from edlm_engine import cli


def run(capsys, *arguments):
    status = cli.main([str(argument) for argument in arguments])
    captured = capsys.readouterr()
    return status, captured.out, captured.err


@pytest.fixture
def hub(tmp_path):
    return save(tmp_path / "mdlm", HUB_CONFIG, tensors(prefix="backbone."))


def test_info_of_a_place(capsys, hub):
    status, out, _ = run(capsys, "info", hub)
    assert status == 0 and "format: mdlm\n" in out and f"mask: {MASK}\n" in out
    facts = json.loads(run(capsys, "info", hub.parent, "--subfolder", "mdlm", "--json")[1])
    assert facts["missing"] == "nothing" and facts["mask"] == MASK
    assert json.loads(run(capsys, "info", hub, "--mask-id", 3, "--json")[1])["mask"] == 3


def test_info_of_what_is_not_there(capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    status, _, err = run(capsys, "info", "someone/nothing")
    assert status == 2 and err.startswith("edlm info: no model at someone/nothing: ")
    status, _, err = run(capsys, "info", tmp_path / "nowhere")
    assert status == 2 and "no model at" in err


def test_convert_and_generate(capsys, hub, tmp_path):
    status, out, _ = run(capsys, "convert", hub, tmp_path / "out")
    assert (status, out) == (0, f"denoiser: edlm generate --model {tmp_path / 'out'}\n")
    save(tmp_path / "ar", BARE_CONFIG, tensors(causal=True))
    quick = ["--steps", "3", "--candidates", "2", "--json", "--dtype", "float32"]
    wanted = json.loads(run(capsys, "generate", "--model", hub, "--energy", "ar", *quick)[1])
    again = ["--model", tmp_path / "out", "--energy", tmp_path / "ar"]
    assert json.loads(run(capsys, "generate", *again, *quick)[1])["tokens"] == wanted["tokens"]
    status, out, _ = run(capsys, "convert", tmp_path / "ar", tmp_path / "own")
    assert out == f"left to right: edlm generate --energy {tmp_path / 'own'}\n"


def test_a_learned_energy(capsys, hub, tmp_path):
    save(tmp_path / "energy", HUB_CONFIG, tensors(prefix="ebm.", wanted=energy_shapes()))
    quick = ["--model", hub, "--energy", "nce", "--steps", "3", "--candidates", "2", "--json"]
    wanted = json.loads(run(capsys, "generate", *quick)[1])
    assert wanted["mean_ess"] > 1
    status, out, _ = run(capsys, "convert", tmp_path / "energy", tmp_path / "own")
    assert out == f"energy: edlm generate --energy {tmp_path / 'own'}\n"
    again = [*quick, "--energy", tmp_path / "own"]
    assert json.loads(run(capsys, "generate", *again)[1])["tokens"] == wanted["tokens"]
    # Text is scored by the AR model beside the denoiser, for the energy gives no probabilities.
    status, _, err = run(capsys, "evaluate", *quick, "--num", "2")
    assert status == 2 and 'energy="ar" means the AR model beside' in err
    save(tmp_path / "ar", BARE_CONFIG, tensors(causal=True))
    scores = json.loads(run(capsys, "evaluate", *quick, "--num", "2")[1])
    assert scores["with_energy"]["energy_evaluations"] > 0 and scores["gain"] != 0


def test_what_cannot_be_converted(capsys, tmp_path):
    save_tiny_llama(tmp_path / "llama")
    status, _, err = run(capsys, "convert", tmp_path / "llama", tmp_path / "out")
    assert status == 2 and "LlamaForCausalLM is not a network of this project" in err
