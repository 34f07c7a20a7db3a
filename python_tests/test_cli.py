"""The command line, called as a user calls it but in this process."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest
import torch

import edlm_engine
from edlm_engine import Engine, GenerationConfig, cli
from edlm_engine.options import command_line
from edlm_engine.sampling.run import Run

QUICK = ["--steps", "3", "--candidates", "2", "--length", "12"]


def run(capsys, *arguments):
    status = cli.main(list(arguments))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def start(*arguments, **options):
    """The command in a process of its own."""
    command = [sys.executable, "-m", "edlm_engine.cli", *map(str, arguments)]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    return subprocess.Popen(command, cwd=ROOT, **pipes, **options)


ROOT = Path(edlm_engine.__file__).parents[1]


def test_version():
    assert start("--version").communicate()[0] == f"edlm {edlm_engine.__version__}\n"


def parsers(parser, name="edlm"):
    """A parser and those of its commands, by name."""
    yield name, parser
    for action in parser._subparsers._group_actions if parser._subparsers else ():
        for command, below in action.choices.items():
            yield from parsers(below, f"{name} {command}")


def test_every_option_has_a_help_text():
    for name, parser in parsers(command_line()):
        for action in parser._actions:
            if action.option_strings or not action.choices:  # else commands, which have their own
                assert action.help and action.help[0] != "(", f"{name} {action.dest}"


def test_generate_prints_what_the_library_gives(capsys):
    prompt = "The old house"
    status, out, _ = run(
        capsys, "generate", *QUICK, "--num", "2", "--seed", "5", "--prompt", prompt, "--json"
    )
    lines = [json.loads(line) for line in out.splitlines()]
    config = GenerationConfig(steps=3, num_candidates=2, length=12)
    want = Engine.from_pretrained().generate(2, config=config, seed=5, prompt=prompt)
    assert status == 0 and [line["text"] for line in lines] == want.texts
    assert [line["tokens"] for line in lines] == want.sequences.tolist()
    assert all(line["text"].startswith(prompt) for line in lines)
    assert all(line["nfe"] <= 4 and 1 <= line["mean_ess"] <= 2 for line in lines)


def test_generate_as_text_without_an_energy(capsys):
    status, out, _ = run(capsys, "generate", *QUICK, "--energy", "none", "--suffix", "the end.")
    header, text = out.split("\n", 1)
    assert status == 0 and "0 candidates scored" in header and "ESS" not in header
    assert text.rstrip("\n").endswith("the end.")


def test_steps_0_is_continuous_time(capsys):
    _, out, _ = run(capsys, "generate", *QUICK, "--steps", "0", "--candidates", "1", "--json")
    assert json.loads(out)["nfe"] == 12


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--steps", "-1"], "steps must be >= 1, got -1"),
        (["--candidates", "0"], "num_candidates must be >= 1, got 0"),
        (["--window", "1.5"], "window must be in [0, 1], got 1.5"),
        (["--length", "4000"], "length must be <= 128"),
        (["--prompt", "word " * 200], "prompt and suffix must fit the length"),
        (["--model", "no/such/folder"], "no model at no/such/folder"),
        (["--energy", "no/such/folder"], "no/such/folder"),
    ],
)
def test_bad_input_is_one_line_and_status_2(capsys, arguments, message):
    status, out, err = run(capsys, "generate", *arguments)
    assert status == 2 and out == ""
    assert message in err and "Traceback" not in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("command", "arguments", "message"),
    [
        ("generate", ["--num", "0"], "--num must be >= 1, got 0"),
        ("generate", ["--steps", "-1"], "steps must be >= 1"),
        ("generate", ["--top-p", "2"], "top_p must be in (0, 1], got 2.0"),
        ("generate", ["--threads", "0"], "--threads must be >= 1, got 0"),
        ("evaluate", ["--num", "1"], "--num must be >= 2, got 1"),
        ("evaluate", ["--batch-size", "0"], "--batch-size must be >= 1, got 0"),
        (
            "evaluate",
            ["likelihood", "--data", ".", "--windows", "1"],
            "--windows must be >= 2, got 1",
        ),
        ("evaluate", ["samples", "--out", "x", "--num", "1"], "--num must be >= 2, got 1"),
        ("evaluate", ["samples", "--out", "x", "--steps", "2", "-1"], "steps must be >= 1, got -1"),
        ("evaluate", ["--temperature", "0"], "temperature must be in [1e-30, 1e30], got 0.0"),
    ],
)
def test_bad_numbers_are_found_before_a_model_loads(
    capsys, monkeypatch, command, arguments, message
):
    monkeypatch.setattr(Engine, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    status, _, err = run(capsys, command, *arguments)
    assert status == 2 and message in err and err.count("\n") == 1


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the device is there")
@pytest.mark.parametrize("device", ["cuda", "cuda:1", "tpu"])
def test_a_missing_device_is_one_line(capsys, device):
    status, _, err = run(capsys, "generate", *QUICK, "--device", device)
    assert status == 2 and "device must be" in err and f"got {device}" in err
    assert err.count("\n") == 1


def test_threads(capsys, monkeypatch):
    before, seen = torch.get_num_threads(), []
    monkeypatch.setattr(
        Run, "advance", lambda *_: seen.append(torch.get_num_threads()) or sys.exit()
    )
    try:
        with pytest.raises(SystemExit):
            run(capsys, "generate", *QUICK, "--threads", "3")
    finally:
        torch.set_num_threads(before)
    assert seen == [3]


@pytest.mark.parametrize("command", ["generate", "evaluate"])
def test_an_interrupt_is_one_line_below_the_bar(capsys, monkeypatch, command):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr(Run, "advance", interrupt)
    status, out, err = run(capsys, command, *QUICK, "--progress")
    assert status == 130 and out == ""
    assert err.endswith(f"\nedlm {command}: interrupted\n") and "Traceback" not in err


def test_an_interrupt_that_becomes_another_error_is_one(capsys, monkeypatch):
    """As in the import of torch, for one."""

    def garbled(*_, **__):
        with suppress(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        raise RuntimeError("could not determine the shape")

    before = signal.getsignal(signal.SIGINT)
    monkeypatch.setattr(Engine, "from_pretrained", garbled)
    assert run(capsys, "generate") == (130, "", "edlm generate: interrupted\n")
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.parametrize("begun", [False, True])
def test_an_interrupted_training_says_how_to_go_on(tmp_path, begun):
    data, out = tmp_path / "text.txt", tmp_path / "run"
    data.write_text("The old house stood on the hill. " * 3000)
    sizes = ["--vocab-size", 300, "--length", 8, "--hidden-dim", 8, "--blocks", 1, "--heads", 1]
    process = start(
        *("train", "ar", "--data", data, "--out", out, *sizes, "--steps", 10**7, "--threads", 1)
    )
    sign = out / "log.jsonl" if begun else Path(f"/proc/{process.pid}/task")
    deadline = time.monotonic() + 120
    while not sign.exists() or (not begun and len(list(sign.iterdir())) < 2):
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    printed, err = process.communicate(timeout=120)
    assert process.returncode == 130 and "Traceback" not in err
    if begun:
        assert "stopped; --resume continues at step" in printed
        assert list((out / "checkpoint").glob("step-*"))
    else:
        assert err == "edlm train: interrupted before any checkpoint\n" and printed == ""


def test_a_broken_pipe_is_silent():
    process = start("info")
    process.stdout.close()
    assert process.stderr.read() == "" and process.wait() == 141


def test_what_is_not_installed_is_one_line(capsys, monkeypatch, tmp_path):
    (tmp_path / "text.txt").write_text("The old house. " * 300)
    monkeypatch.setitem(sys.modules, "accelerate", None)
    options = ["--data", tmp_path / "text.txt", "--out", tmp_path / "run", "--vocab-size", "300"]
    status, _, err = run(capsys, "train", "ar", *map(str, options))
    assert status == 2 and err.count("\n") == 1
    assert "training needs accelerate: pip install 'edlm_engine[training]'" in err


def test_evaluate(capsys):
    status, out, _ = run(
        capsys, "evaluate", *QUICK, "--num", "3", "--batch-size", "2", "--seed", "1", "--json"
    )
    result = json.loads(out)
    assert status == 0
    energy, plain = result["with_energy"], result["without_energy"]
    assert 1 <= energy["ess_min"] <= energy["ess_mean"] <= energy["ess_max"] <= 2
    assert plain["energy_evaluations"] == 0 and plain["ess_mean"] is None
    assert energy["nfe"] == plain["nfe"]
    assert abs(energy["log_p"] - plain["log_p"] - result["gain"]) < 1e-6
    assert run(capsys, "evaluate", *QUICK, "--energy", "none")[0] == 2


def test_evaluate_likelihood(capsys, tmp_path):
    text = tmp_path / "book.txt"
    text.write_text("It was a fine day, and the old man went out to look at the sea.\n" * 20)
    quick = ["evaluate", "likelihood", "--windows", "2", "--draws", "1", "--length", "16"]
    quick += ["--data", str(text)]
    options = [*quick, "--candidates", "3", "--pool", "4"]
    status, out, _ = run(capsys, *options, "--json")
    found = json.loads(out)
    assert status == 0 and found["windows"] == 2 and found["length"] == 16
    assert list(found["sampler"]) == ["2", "3"] and found["steps"] is None
    denoiser, gain = found["denoiser"]["nats_per_token"], found["gain"]["3"]["nats_per_token"]
    assert found["sampler"]["3"]["nats_per_token"] == pytest.approx(denoiser - gain)
    bits = found["ar"]["bits_per_token"] / found["characters_per_token"]
    assert found["ar"]["bits_per_character"] == pytest.approx(bits) and 0.5 < bits < 5
    status, out, _ = run(capsys, *options)
    assert status == 0 and "sampler, K = 3, upper bound" in out and "is no bound" in out
    status, out, _ = run(capsys, *quick, "--energy", "none", "--steps", "4")
    assert status == 0 and "denoiser, upper bound" in out and "paper" not in out
    assert run(capsys, "evaluate", "likelihood", "--data", str(tmp_path / "x"))[0] == 2


def test_evaluate_samples(capsys, tmp_path, monkeypatch):
    out = tmp_path / "out"
    options = ["evaluate", "samples", "--out", str(out), "--num", "2", "--batch-size", "2"]
    options += ["--length", "12", "--joint-draws", "1"]
    sweep = [*options, "--energy", "ar", "coar", "--candidates", "1", "2", "--steps", "3"]
    sweep += ["--temperature", "0.7", "1.0"]
    status, printed, _ = run(capsys, *sweep, "--judge", "none")
    assert status == 0
    for name in ("MDLM N=3 T=0.7", "ar N=3 K=2 w=1.0 T=0.7", "coar N=3 K=2 w=1.0", "log p_AR"):
        assert name in printed
    assert "judge" not in printed and (out / "quality_entropy.png").is_file()
    assert len(json.loads((out / "report.json").read_text())["settings"]) == 7
    monkeypatch.setattr(Engine, "generate", None)  # nothing is made a second time
    assert len(json.loads(run(capsys, *sweep, "--judge", "none", "--json")[1])) == 7
    status, printed, _ = run(capsys, *sweep, "--judge", "none", "--num", "4", "--minutes", "0")
    assert status == 0 and "the same command goes on from here" in printed
    status, _, err = run(capsys, *options, "--judge", "none", "--mauve")
    assert status == 2 and "MAUVE" in err
    status, _, err = run(capsys, *sweep, "--judge", str(tmp_path / "nowhere"))
    assert status == 2 and "no model at" in err


def test_options_before_a_form_of_evaluate_are_not_lost(capsys):
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "--num", "3", "likelihood", "--data", "x"])
    assert "--num must come after likelihood" in capsys.readouterr().err


def test_train_bundle_and_use(capsys, tmp_path):
    text = tmp_path / "book.txt"
    text.write_text("One fine day a cat sat on a mat, and the mat did not mind. " * 60)
    sizes = "--vocab-size 270 --length 8 --hidden-dim 16 --blocks 1 --heads 2 --cond-dim 4"
    options = [*sizes.split(), "--batch-size", "4", "--steps", "2", "--precision", "fp32"]
    options += ["--data", str(text), "--no-compile"]
    den, ar, out = (str(tmp_path / name) for name in ("den", "ar", "bundle"))
    assert run(capsys, "train", "denoiser", *options, "--out", den)[0] == 0
    tokenizer = f"{den}/tokenizer.json"
    status, printed, _ = run(capsys, "train", "ar", *options, "--out", ar, "--tokenizer", tokenizer)
    assert status == 0 and "finished at step 2" in printed
    status, _, err = run(capsys, "train", "ar", *options, "--out", ar)
    assert status == 2 and "already holds a run" in err

    generate = ["generate", "--steps", "2", "--json", "--model"]
    status, _, err = run(capsys, *generate, den, "--energy", "ar")
    assert status == 2 and "the AR model beside the denoiser" in err and "./ar" in err
    status, printed, _ = run(capsys, *generate, den, "--energy", ar)
    assert status == 0 and len(json.loads(printed)["tokens"]) == 8

    status, printed, _ = run(capsys, "bundle", den, ar, out)
    assert status == 0 and printed.endswith(f"edlm generate --model {out} --energy ar\n")
    assert (
        run(capsys, *generate, out, "--energy", "ar")[1]
        == run(capsys, *generate, out, "--energy", f"{out}/ar")[1]
    )
    status, _, err = run(capsys, "bundle", den, ar, out, "--data", str(text))
    assert status == 2 and "held no text out" in err
    status, _, err = run(capsys, "bundle", den, str(tmp_path / "no"), out)
    assert status == 2 and f"no training run at {tmp_path / 'no'}" in err


def test_info(capsys):
    status, out, _ = run(capsys, "info", "--json")
    facts = json.loads(out)
    assert status == 0 and facts["cpu"]["instruction set"] in ("portable", "avx2", "avx512")
    assert facts["cuda"].startswith(("yes", "no: "))
    assert all("cpu" in backends for backends in facts["ops"].values())
    assert facts["bundled model"]["ar"]["held_out"]["nats_per_token"] < 4.9
    assert "held_out" in run(capsys, "info")[1]


@pytest.fixture
def no_worker(monkeypatch):
    """As a user runs it: in a worker of pytest-xdist pytest-benchmark measures nothing."""
    for name in ("PYTEST_XDIST_WORKER", "PYTEST_XDIST_WORKER_COUNT"):
        monkeypatch.delenv(name, raising=False)


def test_bench_writes_a_report(capsys, tmp_path, no_worker):
    folder = tmp_path / "report"
    status, out, _ = run(capsys, "bench", "-k", "small_op and resample", "--report", str(folder))
    assert status == 0 and out.strip() == str(folder / "REPORT.md")
    assert "| resample |" in (folder / "REPORT.md").read_text()
    assert len(json.loads((folder / "results.json").read_text())["benchmarks"]) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the device is there")
def test_bench_samplers_wants_samplers_that_are_there(capsys, tmp_path):
    folder = str(tmp_path / "units")
    wanted = ["--only", "oracle", "--sampler", "nowhere:sample", "--units", folder]
    status, _, err = run(capsys, "bench", "samplers", *wanted, "--out", str(tmp_path / "page"))
    assert status == 2 and "--sampler must be module:function, got nowhere:sample" in err
    with pytest.raises(SystemExit):
        cli.main(["bench", "--report", str(tmp_path), "samplers"])
    assert "--report must come after samplers" in capsys.readouterr().err


def test_bench_on_a_missing_device(capsys, tmp_path):
    status, _, err = run(capsys, "bench", "--device", "cuda", "--report", str(tmp_path / "no"))
    assert status == 2 and "device must be one that torch sees, got cuda" in err
    assert not (tmp_path / "no").exists()


def test_bench_without_a_match(capfd, tmp_path, no_worker):
    status = cli.main(["bench", "-k", "no_such_suite", "--report", str(tmp_path)])
    err = capfd.readouterr().err
    assert status == 2 and "no benchmark matches -k 'no_such_suite'" in err


def test_info_without_installed_metadata():
    """From a checkout that was built but not installed."""
    code = (
        "import importlib.metadata as m, sys; find = m.version\n"
        "def version(name):\n"
        "    if name == 'edlm_engine': raise m.PackageNotFoundError(name)\n"
        "    return find(name)\n"
        "m.version = version\n"
        "from edlm_engine import cli; sys.exit(cli.main(['info', '--json']))"
    )
    run = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0 and json.loads(run.stdout)["edlm_engine"] == edlm_engine.__version__
