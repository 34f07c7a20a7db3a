"""Training runs: what they leave, and how they are interrupted and resumed."""

import dataclasses
import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from edlm_engine.checkpoints.native import load_model
from edlm_engine.training import trainer
from edlm_engine.training.objectives import ar_loss
from edlm_engine.training.run_log import read_log
from edlm_engine.training.trainer import train


def weights(out):
    return load_file(f"{out}/model.safetensors")


def interrupt_after(monkeypatch, step, number):
    """Send this process a signal in the middle of the step that follows `step`."""
    original = trainer.training_windows

    def windows(stream, length, batch_size, at, seed):
        if at == step:
            os.kill(os.getpid(), number)
        return original(stream, length, batch_size, at, seed)

    monkeypatch.setattr(trainer, "training_windows", windows)


@pytest.mark.parametrize("kind", ["denoiser", "ar"])
def test_a_run_leaves_everything(config, tmp_path, kind):
    result = train(kind, config)
    out = tmp_path / "run"
    names = {file.name for file in out.iterdir()}
    assert names == {
        *("config.json", "model.safetensors", "tokenizer.json", "recipe.json"),
        *("log.jsonl", "loss.png", "checkpoint", ".lock"),
    }
    assert [folder.name for folder in (out / "checkpoint").iterdir()] == ["step-00000006"]
    recipe = json.loads((out / "recipe.json").read_text())
    assert recipe["finished"] and recipe["steps_done"] == 6 and recipe["kind"] == kind
    assert recipe["held_out_files"] == ["Bell_One.txt"] and recipe["training_files"] == 2
    assert recipe["held_out"]["nats_per_token"] == pytest.approx(result.held_out_loss, abs=1e-4)
    assert recipe["config"]["seed"] == 0 and recipe["config"]["data"] == ["books"]
    assert str(tmp_path) not in (out / "recipe.json").read_text()
    log = read_log(out)
    held_out = [entry for entry in log if "held_out_loss" in entry]
    assert [entry["step"] for entry in held_out] == [2, 4, 6]
    per_token = recipe["held_out_characters"] / recipe["held_out_tokens"]
    for entry in held_out:
        per_character = entry["held_out_per_character"]
        assert entry["held_out_loss"] == pytest.approx(per_character * per_token)
    assert [entry["step"] for entry in log if "loss" in entry] == [6]
    model = load_model(out)
    assert model.vocab_size == 270 + (kind == "denoiser")
    assert (out / "loss.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize(
    ("kind", "optimizer", "number"),
    [("denoiser", "muon", signal.SIGTERM), ("ar", "adamw", signal.SIGINT)],
)
def test_interrupted_and_resumed_equals_straight(
    config, tmp_path, monkeypatch, kind, optimizer, number
):
    config = dataclasses.replace(config, optimizer=optimizer, checkpoint_every=100)
    straight = dataclasses.replace(config, out=str(tmp_path / "straight"))
    assert train(kind, straight).finished

    interrupt_after(monkeypatch, 2, number)
    stopped = train(kind, config)
    assert (stopped.step, stopped.finished) == (3, False)
    assert not json.loads((tmp_path / "run" / "recipe.json").read_text())["finished"]
    monkeypatch.undo()
    resumed = train(kind, dataclasses.replace(config, resume=True))
    assert resumed.finished and resumed.step == 6
    wanted, got = weights(straight.out), weights(config.out)
    assert wanted.keys() == got.keys()
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)
    steps = [[e["step"] for e in read_log(tmp_path / run)] for run in ("straight", "run")]
    assert steps[0] == [2, 4, 6, 6] and steps[1] == [2, 4, 6, 6]


def test_killed_run_continues_from_its_checkpoint(config, tmp_path, monkeypatch):
    config = dataclasses.replace(config, eval_every=1)
    straight = dataclasses.replace(config, out=str(tmp_path / "straight"))
    train("ar", straight)

    original = trainer.training_windows

    def windows(stream, length, batch_size, at, seed):
        if at == 5:
            raise MemoryError("the machine died")
        return original(stream, length, batch_size, at, seed)

    monkeypatch.setattr(trainer, "training_windows", windows)
    with pytest.raises(MemoryError):
        train("ar", config)
    monkeypatch.undo()
    assert train("ar", dataclasses.replace(config, resume=True)).step == 6
    wanted, got = weights(straight.out), weights(config.out)
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)
    # Step 5 was lost with the crash and is logged once.
    assert [e["step"] for e in read_log(tmp_path / "run")] == [1, 2, 3, 4, 5, 6, 6]


def test_every_step_has_its_own_noise(config, monkeypatch):
    seeds = []

    def recording(model, x0, random, hidden):
        seeds.append(random.initial_seed())
        return ar_loss(model, x0, random, hidden)

    monkeypatch.setitem(trainer.LOSSES, "ar", recording)
    train("ar", dataclasses.replace(config, held_out=()))
    assert len(set(seeds)) == len(seeds) == 6


def test_a_half_written_checkpoint_is_ignored(config, tmp_path):
    train("ar", dataclasses.replace(config, steps=2))
    half = tmp_path / "run" / "checkpoint" / "unfinished"
    half.mkdir()
    (half / "model.safetensors").write_bytes(b"half")
    assert train("ar", dataclasses.replace(config, resume=True)).step == 6
    assert not half.exists()


def test_resume_refuses_another_run(config, data):
    with pytest.raises(FileNotFoundError, match="nothing to resume"):
        train("ar", dataclasses.replace(config, resume=True))
    train("ar", config)
    with pytest.raises(FileExistsError, match="already holds a run"):
        train("ar", config)
    changed = dataclasses.replace(config, resume=True, lr=0.5, seed=3)
    with pytest.raises(ValueError, match=r"changed: lr 0.002 -> 0.5, seed 0 -> 3"):
        train("ar", changed)
    with pytest.raises(ValueError, match="changed: kind 'ar' -> 'denoiser'"):
        train("denoiser", dataclasses.replace(config, resume=True))
    (data / "Ames_Three.txt").write_text("one more book")
    with pytest.raises(ValueError, match="changed: training_files 2 -> 3"):
        train("ar", dataclasses.replace(config, resume=True))


def test_training_learns(config):
    """The words are independent draws: learning to spell them takes most of the loss away."""
    longer = dataclasses.replace(config, steps=60, hidden_dim=32, lr=1e-2, dropout=0.0)
    untrained = torch.log(torch.tensor(270.0)).item()
    assert train("ar", longer).held_out_loss < untrained - 2


def test_the_average_of_a_short_run_holds_little_of_its_start(config):
    """With the default decay of 0.999, an average begun in full would be 94 % random start."""
    short = dataclasses.replace(config, steps=60, hidden_dim=32, lr=1e-2, dropout=0.0, ema=0.999)
    untrained = torch.log(torch.tensor(270.0)).item()
    assert train("ar", short).held_out_loss < untrained - 1.5


def test_bfloat16_and_given_tokenizer(config, tmp_path):
    first = train("denoiser", dataclasses.replace(config, steps=2))
    assert first.finished
    again = dataclasses.replace(
        config,
        out=str(tmp_path / "second"),
        tokenizer=str(tmp_path / "run" / "tokenizer.json"),
        steps=2,
    )
    train("ar", again)
    files = [tmp_path / run / "tokenizer.json" for run in ("run", "second")]
    assert files[0].read_bytes() == files[1].read_bytes()


def test_bad_kind_is_named(config):
    with pytest.raises(
        ValueError, match="kind must be denoiser or ar or adapt or energy, got 'gan'"
    ):
        train("gan", config)
