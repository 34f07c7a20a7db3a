"""A run's folder: one run at a time, leftovers of a killed one, damage named by file."""

import dataclasses
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import edlm_engine
from edlm_engine.training import trainer
from edlm_engine.training.run_folder import require_whole, sole_run
from edlm_engine.training.run_log import append_log, read_log
from edlm_engine.training.trainer import train

ROOT = Path(edlm_engine.__file__).parents[1]


def test_two_runs_do_not_share_a_folder(config, tmp_path):
    with sole_run(tmp_path / "run"):
        with pytest.raises(FileExistsError, match=r"another run is writing to .*run: choose"):
            train("ar", config)
        with sole_run(tmp_path / "other"):
            pass
    assert train("ar", config).finished


def test_a_killed_process_holds_no_folder(tmp_path):
    code = (
        "import sys, time; from pathlib import Path\n"
        "from edlm_engine.training.run_folder import sole_run\n"
        "with sole_run(Path(sys.argv[1])): print('held', flush=True); time.sleep(600)"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path)], cwd=ROOT, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout.readline() == "held\n"
    with pytest.raises(FileExistsError), sole_run(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    with sole_run(tmp_path):
        pass


def test_what_a_killed_run_logged_does_not_stop_the_next(config, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    append_log(out, step=1, loss=5.0)
    with open(out / "log.jsonl", "a") as file:
        file.write('{"step": 2, "lo')
    assert train("ar", config).finished
    assert [entry["step"] for entry in read_log(out)] == [2, 4, 6, 6]


def test_a_damaged_log_is_named(tmp_path):
    append_log(tmp_path, step=1)
    with open(tmp_path / "log.jsonl", "a") as file:
        file.write('{"step": 2, "lo\n')
    with pytest.raises(ValueError, match=r"log\.jsonl, line 2, is not JSON"):
        read_log(tmp_path)


@pytest.mark.parametrize("name", ["optimizer.bin", "optimizer_1.bin", "custom_checkpoint_0.pkl"])
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_damaged_checkpoint_names_the_file(config, tmp_path, name, damage):
    train("denoiser", dataclasses.replace(config, steps=2))
    file = tmp_path / "run" / "checkpoint" / "step-00000002" / name
    content = bytearray(file.read_bytes())
    if damage == "cut":
        del content[len(content) // 2 :]
    else:
        # In the middle of the largest part, where no structure notices it.
        content[len(content) // 2] ^= 255
    file.write_bytes(content)
    with pytest.raises(ValueError, match=rf"{name} is damaged"):
        train("denoiser", dataclasses.replace(config, resume=True))


def test_a_whole_checkpoint_passes(config, tmp_path):
    train("ar", dataclasses.replace(config, steps=2))
    require_whole(tmp_path / "run" / "checkpoint")


def test_an_error_ends_the_bar_first(config, monkeypatch, capsys):
    """The bar's line is complete when the error is raised."""

    def fail(*_):
        ended.append(False)
        raise RuntimeError("no more")

    class Bar(trainer.tqdm):
        def close(self):
            ended.append(True)
            super().close()

    ended = []
    monkeypatch.setattr(trainer, "tqdm", Bar)
    monkeypatch.setattr(trainer.Run, "update", fail)
    with pytest.raises(RuntimeError, match="no more") as caught:
        train("ar", config)
    assert ended[:2] == [False, True] and caught.tb is not None
    assert capsys.readouterr().err.endswith("\n")


def test_two_precisions_in_one_process(config, tmp_path, monkeypatch):
    seen = []
    plain = trainer.LOSSES["ar"]

    def recording(model, x0, random, hidden):
        seen.append(torch.is_autocast_enabled("cpu"))
        return plain(model, x0, random, hidden)

    monkeypatch.setitem(trainer.LOSSES, "ar", recording)
    for precision in ("fp32", "bf16", "fp32"):
        out = str(tmp_path / f"{precision}-{len(seen)}")
        train("ar", dataclasses.replace(config, out=out, precision=precision, steps=1, held_out=()))
    assert seen == [False, True, False]
