"""The command line, called as a user calls it but in this process."""

import json

import pytest
import torch

from edlm_engine import Engine, GenerationConfig, cli

QUICK = ["--steps", "3", "--candidates", "2", "--length", "12"]


def run(capsys, *arguments):
    status = cli.main(list(arguments))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


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


def test_train_and_use(capsys, tmp_path):
    text = tmp_path / "book.txt"
    text.write_text("One fine day a cat sat on a mat, and the mat did not mind. " * 60)
    sizes = "--vocab-size 270 --length 8 --hidden-dim 16 --blocks 1 --heads 2 --cond-dim 4"
    options = [*sizes.split(), "--batch-size", "4", "--steps", "2", "--precision", "fp32"]
    options += ["--data", str(text), "--no-compile"]
    out = tmp_path / "bundle"
    assert run(capsys, "train", "denoiser", *options, "--out", str(out / "denoiser"))[0] == 0
    tokenizer = str(out / "denoiser" / "tokenizer.json")
    status, printed, _ = run(
        capsys, "train", "ar", *options, "--out", str(out / "ar"), "--tokenizer", tokenizer
    )
    assert status == 0 and "finished at step 2" in printed
    status, _, err = run(capsys, "train", "ar", *options, "--out", str(out / "ar"))
    assert status == 2 and "already holds a run" in err
    status, printed, _ = run(
        capsys, "generate", "--model", str(out), "--energy", "ar", "--steps", "2", "--json"
    )
    assert status == 0 and len(json.loads(printed)["tokens"]) == 8


def test_info(capsys):
    status, out, _ = run(capsys, "info", "--json")
    facts = json.loads(out)
    assert status == 0 and facts["cpu"]["instruction set"] in ("portable", "avx2", "avx512")
    assert facts["cuda"].startswith(("yes", "no: "))
    assert all("cpu" in backends for backends in facts["ops"].values())
    assert facts["bundled model"]["ar"]["held_out"]["nats_per_token"] < 4.9
    assert "held_out" in run(capsys, "info")[1]


def test_bench_writes_a_report(capsys, tmp_path):
    folder = tmp_path / "report"
    status, out, _ = run(capsys, "bench", "-k", "small_op and resample", "--report", str(folder))
    assert status == 0 and out.strip() == str(folder / "REPORT.md")
    assert "| resample |" in (folder / "REPORT.md").read_text()
    assert len(json.loads((folder / "results.json").read_text())["benchmarks"]) == 2


@pytest.mark.skipif(torch.cuda.is_available(), reason="here the device is there")
def test_bench_on_a_missing_device(capsys, tmp_path):
    status, _, err = run(capsys, "bench", "--device", "cuda", "--report", str(tmp_path / "no"))
    assert status == 2 and "--device must be one that torch sees, got cuda" in err
    assert not (tmp_path / "no").exists()
