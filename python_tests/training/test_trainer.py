"""Training: the objectives against enumeration, the data order, and runs that are interrupted."""

import dataclasses
import itertools
import json
import os
import signal

import pytest
import torch
from safetensors.torch import load_file

from edlm_engine.checkpoints.bundle import load_bundle
from edlm_engine.checkpoints.native import load_model
from edlm_engine.models import ARConfig, AutoregressiveTransformer, DiT, DiTConfig
from edlm_engine.training import trainer
from edlm_engine.training.bundle import bundle
from edlm_engine.training.config import TrainConfig, learning_rate
from edlm_engine.training.corpus import (
    evaluation_windows,
    split_held_out,
    text_files,
    training_windows,
    unwrap_text,
)
from edlm_engine.training.objectives import ar_loss, denoiser_loss, held_out_loss, mask_tokens
from edlm_engine.training.run_log import read_log
from edlm_engine.training.trainer import train

SIZES = {"length": 4, "hidden_dim": 16, "n_blocks": 1, "n_heads": 2}


def tiny_dit():
    torch.manual_seed(0)
    model = DiT(DiTConfig(vocab_size=6, mask_id=5, cond_dim=4, **SIZES)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_denoiser_loss_is_the_continuous_time_bound():
    """Against (1 / t) weights integrated over t in closed form, every mask pattern enumerated."""
    model, x0 = tiny_dit(), torch.tensor([[3, 1, 4, 0]])
    length, points = 4, 20_000
    t = (torch.arange(points).double() + 0.5) / points
    wanted = 0.0
    for pattern in itertools.product([False, True], repeat=length):
        masked = torch.tensor([pattern])
        n = int(masked.sum())
        if n:
            logits = model.logits(torch.where(masked, 5, x0), torch.zeros(1)).double()
            logits[..., 5] = -torch.inf
            nll = -logits.log_softmax(-1).gather(2, x0[..., None])[..., 0][masked].sum().item()
            # Weight 1 / t of the log-linear schedule times the probability of this pattern.
            wanted += nll * (t ** (n - 1) * (1 - t) ** (length - n)).mean().item() / length
    with torch.no_grad():
        losses = [
            denoiser_loss(model, x0.expand(64, -1), generator(seed), model.hidden).item()
            for seed in range(200)
        ]
    losses = torch.tensor(losses).double()
    stderr = losses.std().item() / len(losses) ** 0.5
    assert stderr < 0.004 * wanted
    assert abs(losses.mean().item() - wanted) < 4 * stderr


def test_mask_is_left_out_of_the_loss():
    model, x0 = tiny_dit(), torch.tensor([[3, 1, 4, 0]] * 2)
    before = denoiser_loss(model, x0, generator(), model.hidden)
    with torch.no_grad():
        model.output_layer.linear.bias[5] += 20
    assert torch.equal(denoiser_loss(model, x0, generator(), model.hidden), before)


def test_times_are_stratified():
    x0 = torch.zeros(32, 16, dtype=torch.int64)
    xt, count = mask_tokens(x0, 9, generator())
    assert torch.equal((xt == 9).sum(1), count)
    # Two rows for each count, up to the common shift u of the strata.
    assert (torch.bincount(count, minlength=17)[1:] == 2).all()
    assert not torch.equal(count, count.sort().values)
    positions = torch.stack([(mask_tokens(x0, 9, generator(s))[0] == 9).sum(0) for s in range(50)])
    expected = 50 * 32 * 17 / 32
    assert (positions.sum(0) - expected).abs().max() < 5 * (50 * 32 * 0.25) ** 0.5


@pytest.mark.parametrize(("bos_id", "first"), [(0, 0), (None, 1)])
def test_ar_loss_is_the_chain_rule(bos_id, first):
    torch.manual_seed(0)
    model = AutoregressiveTransformer(ARConfig(vocab_size=5, bos_id=bos_id, **SIZES))
    x0 = torch.randint(5, (3, 4))
    log_p = model.logits(x0).log_softmax(-1).gather(2, x0[..., None])[..., 0]
    loss = ar_loss(model, x0, generator(), model.hidden)
    torch.testing.assert_close(loss, -log_p[:, first:].mean())


def test_held_out_loss_is_deterministic_and_restores_the_mode():
    model, windows = tiny_dit().train(), torch.randint(5, (7, 4))
    losses = [held_out_loss("denoiser", model, windows, draws=2, batch_size=3) for _ in range(2)]
    assert losses[0] == losses[1] and model.training
    assert held_out_loss("denoiser", model, windows, draws=2, seed=1) != losses[0]


def test_each_epoch_takes_every_window_once():
    stream, length, batch = torch.arange(103, dtype=torch.int32), 10, 4
    count = (len(stream) - length + 1) // length
    steps = -(-count * 3 // batch)
    batches = [training_windows(stream, length, batch, step, seed=5) for step in range(steps)]
    windows = torch.cat(batches)
    assert torch.equal(windows, windows[:, :1] + torch.arange(length))
    offsets, orders = set(), set()
    for epoch in range(3):
        starts = windows[epoch * count : (epoch + 1) * count, 0]
        offsets.add(int(starts.min()))
        orders.add(tuple(starts.tolist()))
        expected = torch.arange(count) * length + starts.min()
        assert torch.equal(starts.sort().values, expected)
        assert not torch.equal(starts, expected)
    assert len(offsets) > 1 and len(orders) == 3
    assert torch.equal(training_windows(stream, length, batch, 6, seed=5), batches[6])
    assert not torch.equal(training_windows(stream, length, batch, 6, seed=6), batches[6])


def test_too_little_data_is_named():
    with pytest.raises(ValueError, match="at least 19 tokens, got 18"):
        training_windows(torch.zeros(18), 10, 2, 0, 0)
    with pytest.raises(ValueError, match="at least 10 tokens, got 9"):
        evaluation_windows(torch.zeros(9), 10, 4)


def test_evaluation_windows_spread():
    windows = evaluation_windows(torch.arange(100), 10, 4)
    assert windows[:, 0].tolist() == [0, 30, 60, 90]
    assert len(evaluation_windows(torch.arange(100), 10, 50)) == 10


def test_unwrap_joins_wrapped_lines():
    wrapped = (
        "CHAPTER I\n\n\nIt was a cold and windy night, and\nthe old house shook.  Nobody\n"
        "slept.\n\n“Who is there?” she asked.\n"
    )
    assert unwrap_text(wrapped) == (
        "CHAPTER I\nIt was a cold and windy night, and the old house shook. Nobody slept.\n"
        '"Who is there?" she asked.'
    )


def test_unwrap_finds_paragraphs_without_blank_lines():
    line = "a line of words as wide as the page is there\n"
    assert unwrap_text(line * 12 + "the end.\n" + line * 12).count("\n") == 1


def test_unwrap_keeps_paragraph_lines():
    paragraph = "word " * 60 + "end."
    assert unwrap_text(f"{paragraph}\n\n{paragraph}\n") == f"{paragraph}\n{paragraph}"


def test_learning_rate_rises_then_falls():
    config = TrainConfig(data=("x",), out="y", steps=100, warmup=10, lr=1.0)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == 1.0 and rates.index(1.0) in (9, 10)
    assert rates[9:] == sorted(rates[9:], reverse=True) and 0.009 < rates[-1] < 0.02


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "books"
    folder.mkdir()
    words = ("the", "cat", "and", "a", "dog", "sat", "down", "by", "old", "house", "green", "hill")
    random = generator(3)
    for author in ("Ames_One", "Ames_Two", "Bell_One"):
        picks = torch.randint(len(words), (400,), generator=random).tolist()
        (folder / f"{author}.txt").write_text(" ".join(words[i] for i in picks))
    return folder


@pytest.fixture
def config(data, tmp_path):
    return TrainConfig(
        data=(str(data),),
        out=str(tmp_path / "run"),
        held_out=("Bell_*",),
        vocab_size=270,
        length=8,
        hidden_dim=16,
        blocks=1,
        heads=2,
        cond_dim=4,
        dropout=0.1,
        batch_size=4,
        steps=6,
        warmup=2,
        ema=0.5,
        eval_every=2,
        eval_windows=8,
        final_windows=16,
        checkpoint_every=2,
        precision="fp32",
    )


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
        *("log.jsonl", "loss.png", "checkpoint"),
    }
    assert [folder.name for folder in (out / "checkpoint").iterdir()] == ["step-00000006"]
    recipe = json.loads((out / "recipe.json").read_text())
    assert recipe["finished"] and recipe["steps_done"] == 6 and recipe["kind"] == kind
    assert recipe["held_out_files"] == ["Bell_One.txt"] and recipe["training_files"] == 2
    assert recipe["held_out"]["nats_per_token"] == pytest.approx(result.held_out_loss, abs=1e-4)
    assert recipe["config"]["seed"] == 0 and recipe["config"]["data"] == ["books"]
    assert str(tmp_path) not in (out / "recipe.json").read_text()
    log = read_log(out)
    assert [entry["step"] for entry in log if "held_out_loss" in entry] == [2, 4, 6]
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


def test_data_is_split_by_name(data):
    files = text_files([data])
    assert [file.name for file in split_held_out(files, ["Ames_*"])[0]] == ["Bell_One.txt"]
    with pytest.raises(ValueError, match=r"held_out must match .*\['Cole_\*'\]"):
        split_held_out(files, ["Bell_*", "Cole_*"])
    with pytest.raises(FileNotFoundError, match=r"no text file or folder .*missing"):
        text_files([data / "missing"])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("batch_size", 0),
        ("lr", 0.0),
        ("ema", 1.0),
        ("optimizer", "sgd"),
        ("precision", "fp16"),
        ("threads", 0),
        ("data", ()),
        ("length", 1),
        ("seed", -1),
    ],
)
def test_bad_settings_are_named(config, field, value):
    with pytest.raises(ValueError, match=f"{field} must be .*got"):
        dataclasses.replace(config, **{field: value})


def test_bad_kind_is_named(config):
    with pytest.raises(ValueError, match="kind must be denoiser or ar or adapt, got 'gan'"):
        train("gan", config)
