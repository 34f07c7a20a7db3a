"""A text as it appears: on a terminal, which is a pseudo one here, and through a pipe."""

import io
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.console import Console

import edlm_engine
from edlm_engine import Engine, GenerationConfig, cli, watch
from edlm_engine.options import command_line
from edlm_engine.sampling.cohort import Progress
from edlm_engine.sampling.options import COMMON, FURTHER, config_of

pty = pytest.importorskip("pty", reason="there are no pseudo terminals here")
ROOT = Path(edlm_engine.__file__).parents[1]
QUICK = ["--steps", "5", "--candidates", "2", "--length", "20"]
MASK = 1


@pytest.fixture(scope="module")
def engine():
    return Engine.from_pretrained()


@pytest.fixture
def one_engine(engine, monkeypatch):
    monkeypatch.setattr(Engine, "from_pretrained", lambda *_, **__: engine)


def letters(tokens):
    """Words of one letter, of which the first has no space before it."""
    return " ".join("_#abcdefgh"[token] for token in tokens)


def progress(tokens, steps, ess=float("nan")):
    known = torch.zeros(len(tokens), dtype=torch.bool)
    return Progress(torch.tensor(tokens), known, steps, 9, 2 * steps, torch.tensor(ess))


def spans(text):
    """(text, style) of the parts of a text, adjacent ones of a style together."""
    parts = []
    for place, letter in enumerate(text.plain):
        styles = [str(s.style) for s in text.spans if s.start <= place < s.end and s.style]
        style = " ".join(styles)
        if parts and parts[-1][1] == style:
            parts[-1] = (parts[-1][0] + letter, style)
        else:
            parts.append((letter, style))
    return parts


# What is shown of a state


def test_masks_are_dim_and_what_is_new_is_bright():
    frame = watch.Frame(letters, MASK)
    frame.update(progress([2, 3, MASK, MASK, MASK, 4], 0))
    facts, *parts = spans(frame.rendered("1 of 1"))
    assert facts == ("--- 1 of 1: step 0 of 9, 0 denoiser evaluations\n", "dim")
    assert parts == [("a b", ""), (" · · ·", "dim"), ("c", "")]
    frame.update(progress([2, 3, 5, MASK, 6, 4], 1, 1.25))
    facts, *parts = spans(frame.rendered("x"))
    assert facts[0] == "--- x: step 1 of 9, 2 denoiser evaluations, ESS 1.25\n"
    new = "bold bright_green"
    assert parts == [("a b", ""), (" d", new), (" ·", "dim"), ("e", new), (" c", "")]
    frame.update(progress([2, 3, MASK, 7, 6, 4], 2))  # one is hidden again
    assert spans(frame.rendered("x"))[1:] == [
        ("a b", ""),
        (" ·", "dim"),
        ("f", new),
        (" e c", ""),
    ]


def test_pieces_are_those_of_the_whole_text(engine):
    decode = engine.tokenizer.decode
    text = "He said “no”, naïvely: 猫 and 🐈.\nThen"
    tokens = engine.tokenizer.encode(text)
    for styles in ("ab" * len(tokens), "aab" * len(tokens), "a" * len(tokens)):
        styled = list(zip(tokens, styles, strict=False))
        found = list(watch.pieces(decode, styled))
        whole = "".join(piece for piece, _ in found)
        assert whole == text
        assert {style for _, style in found} <= set("ab")
    half = watch.pieces(decode, [(token, "a") for token in engine.tokenizer.encode("a 🐈")[:-1]])
    assert list(half) == [("a \ufffd", "a")]
    words = engine.tokenizer.encode(" the old house on the hill")
    assert [p for p, _ in watch.pieces(decode, zip(words, range(99), strict=False))] == [
        decode([word]) for word in words
    ]


def test_a_text_does_not_steer_the_terminal():
    frame = watch.Frame(lambda tokens: "a\x1b[2J\x07\r\n\tb", MASK)
    frame.update(progress([2], 0))
    out = io.StringIO()
    Console(file=out, force_terminal=True, width=60).print(frame.rendered("x"))
    shown = out.getvalue().split("\n", 1)[1]
    assert "\x1b[2J" not in shown and "\x07" not in shown and "\r" not in shown
    assert "a\ufffd[2J\ufffd\ufffd\n" in shown


# On a terminal


def on_a_terminal(*arguments, until=b"", then=None, **variables):
    """The command in a process on a pseudo terminal: its status, and all that it wrote."""
    master, slave = pty.openpty()
    environment = {**os.environ, "TERM": "xterm-256color", "COLUMNS": "80", "LINES": "40"}
    environment |= {"OMP_NUM_THREADS": "1", **variables}
    command = [sys.executable, "-m", "edlm_engine.cli", "generate", *arguments]
    files = {"stdin": slave, "stdout": slave, "stderr": slave}
    process = subprocess.Popen(command, cwd=ROOT, env=environment, **files)
    os.close(slave)
    written = b""
    while True:
        try:
            some = os.read(master, 1 << 16)
        except OSError:  # nobody holds the other side any more
            break
        if not some:
            break
        written += some
        if then and until in written:
            then(process)
            then = None
    os.close(master)
    return process.wait(timeout=60), written.decode().replace("\r\n", "\n")


def test_watching_on_a_terminal():
    prompt = "The old house"
    status, written = on_a_terminal(
        *QUICK, "--watch", "--num", "2", "--seed", "3", "--prompt", prompt
    )
    assert status == 0
    config = GenerationConfig(steps=5, num_candidates=2, length=20)
    want = Engine.from_pretrained().generate(2, config=config, seed=3, prompt=prompt)
    before, after = written.rsplit("\x1b[2K", 1)  # the view is wiped, the text stays
    lines = after.split("\n")
    assert lines[0].startswith(f"--- 1 of 2: {want.nfe[0]} denoiser evaluations")
    for text in want.texts:
        assert text in after.replace("\r", "")
    assert before.endswith("\x1b[1A") and "\x1b[?25h" in before  # the cursor is back
    frames = re.findall(r"--- (\d) of 2: (?:step (\d+) of (\d+)|done), (\d+) denoiser", before)
    for number, nfe in zip("12", want.nfe.tolist(), strict=True):
        own = [frame for frame in frames if frame[0] == number]
        counts = [int(frame[3]) for frame in own]
        assert counts[: nfe + 1] == list(range(nfe + 1)) and set(counts) == {*range(nfe + 1)}
        assert own[-1][1] == "" and own[0][2] == str(nfe)
    assert "ESS" in before and f"{prompt}\x1b[2m ·" in before  # the prompt as it is, masks dim
    assert before.count("\x1b[1;92m") > 5


def test_an_interrupt_leaves_the_terminal_as_it_was():
    status, written = on_a_terminal(
        *("--steps", "0", "--watch", "--candidates", "2"),
        until=b"step 3 of",
        then=lambda process: process.send_signal(signal.SIGINT),
    )
    assert status == 130 and "Traceback" not in written
    assert written.endswith("edlm generate: interrupted\n")
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")


@pytest.mark.usefixtures("one_engine")
def test_without_a_terminal_the_text_comes_when_it_is_done(engine, capsys, monkeypatch):
    want = engine.generate(1, config={"steps": 5, "num_candidates": 2, "length": 20}, seed=4)
    status = cli.main(["generate", *QUICK, "--seed", "4", "--watch"])
    out, err = capsys.readouterr()
    assert status == 0 and out.split("\n", 1)[1] == want.texts[0] + "\n" and "\x1b" not in out
    assert err == "--watch needs a terminal: the text comes when it is done\n"
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True, raising=False)
    for term, can in (("dumb", False), ("xterm", True)):
        monkeypatch.setenv("TERM", term)
        monkeypatch.setenv("TTY_COMPATIBLE", "1")
        assert watch.can_show() is can


# Through a pipe


class Flushed(io.StringIO):
    """Notes what had been written at each flush."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def flush(self):
        self.seen.append(self.getvalue())


@pytest.mark.parametrize(
    "config",
    [
        {"steps": None, "order": "leftmost", "length": 24},
        {"steps": 8, "length": 40, "num_candidates": 2},
        {"steps": 8, "length": 40, "order": "confidence", "block_length": 8},
    ],
)
def test_words_come_as_they_stand(engine, monkeypatch, config):
    out = Flushed()
    monkeypatch.setattr(sys, "stdout", out)
    given = {"config": config, "prompt": "“It was — ", "suffix": " the 猫."}
    watch.stream(engine, seed=6, progress=False, **given)
    want = engine.generate(1, seed=6, **given).texts[0]
    assert out.getvalue() == want + "\n"
    assert out.seen[0] == "“It was — " and len(out.seen) > 3
    for text in out.seen[:-2]:
        assert want.startswith(text) and text[-1] in " \n"


def test_words_without_a_tokenizer(engine, monkeypatch):
    out = Flushed()
    monkeypatch.setattr(sys, "stdout", out)
    bare = Engine(engine.denoiser, engine.energy)
    watch.stream(bare, seed=1, progress=False, config={"steps": 3, "length": 5})
    want = bare.generate(1, seed=1, config={"steps": 3, "length": 5}).sequences[0].tolist()
    assert list(map(int, out.getvalue().split())) == want


def started(*arguments):
    command = [sys.executable, "-m", "edlm_engine.cli", "generate", *arguments]
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    return subprocess.Popen(command, cwd=ROOT, env=environment, **pipes)


LONG = ["--steps", "0", "--order", "leftmost", "--stream", "--prompt", "The old "]
LONG += ["--candidates", "1", "--length", "40"]


def test_a_stream_in_a_pipe(engine):
    process = started(*LONG)
    parts = []
    while part := os.read(process.stdout.fileno(), 1 << 16):
        parts.append(part)
    assert process.wait(timeout=60) == 0
    config = GenerationConfig(steps=None, order="leftmost", num_candidates=1, length=40)
    want = engine.generate(1, config=config, prompt="The old ").texts[0]
    assert b"".join(parts).decode() == want + "\n" and len(parts) > 3
    assert parts[0].startswith(b"The old ")


def test_a_reader_that_leaves():
    process = started(*LONG)
    assert os.read(process.stdout.fileno(), 8) == b"The old "
    process.stdout.close()
    err = process.stderr.read()
    assert process.wait(timeout=60) == 141 and b"Traceback" not in err and b"ipe" not in err


# The options


def parsed(*arguments):
    return config_of(command_line().parse_args(["generate", *arguments]))


def test_every_field_has_an_option():
    fields = {field for field in GenerationConfig.__dataclass_fields__}
    assert fields == COMMON.keys() | FURTHER.keys()
    assert parsed() == GenerationConfig()


@pytest.mark.parametrize(
    ("arguments", "fields"),
    [
        ("--steps 0 --candidates 3", {"steps": None, "num_candidates": 3}),
        ("--window 0.5", {"window": 0.5}),
        ("--window 0.25,0.75", {"window": (0.25, 0.75)}),
        ("--new-tokens 9 --eos-id 0", {"new_tokens": 9, "eos_id": 0}),
        ("--top-k 5 --min-p 0.1 --top-p 0.9", {"top_k": 5, "min_p": 0.1, "top_p": 0.9}),
        ("--order margin --block-length 4", {"order": "margin", "block_length": 4}),
        ("--order threshold --threshold 0.8", {"order": "threshold", "threshold": 0.8}),
        ("--remask 0.2 --guidance -0.5", {"remask": 0.2, "guidance": -0.5}),
        ("--logit-bias 5:-inf 6:1.5", {"logit_bias": {5: -float("inf"), 6: 1.5}}),
        ("--allowed-tokens 1 2 3", {"allowed_tokens": (1, 2, 3)}),
        ("--forbidden-tokens 4", {"forbidden_tokens": (4,)}),
        ("--correction smc --ess-threshold 0.7", {"correction": "smc", "ess_threshold": 0.7}),
        ("--correction local --shared-rests 2", {"correction": "local", "shared_rests": 2}),
        ("--correction gibbs --sweeps 3", {"correction": "gibbs", "sweeps": 3}),
        ("--ess-target 2.5 --final argmax", {"ess_target": 2.5, "final": "argmax"}),
        ("--batch-invariant --record", {"batch_invariant": True, "record": True}),
        ("--energy-temperature 2 --length 8", {"energy_temperature": 2.0, "length": 8}),
        ("--entropy-bound 0.3 --temperature 0.5", {"entropy_bound": 0.3, "temperature": 0.5}),
    ],
)
def test_options_are_fields(arguments, fields):
    assert parsed(*arguments.split()) == GenerationConfig(**fields)


@pytest.mark.usefixtures("one_engine")
def test_a_record_as_json(engine, capsys):
    assert cli.main(["generate", *QUICK, "--json", "--record", "--num", "2", "--seed", "2"]) == 0
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    config = GenerationConfig(steps=5, num_candidates=2, length=20, record=True)
    want = engine.generate(2, config=config, seed=2).record.to_dicts()
    assert [line["record"] for line in lines] == want
    assert len(lines[0]["record"]["log_q"]) == 20


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--record"], "--record must come with --json"),
        (["--stream", "--num", "2"], "--num must be 1 with --stream, got 2"),
        (["--watch", "--progress"], "--watch shows the progress"),
        (["--new-tokens", "9", "--length", "9"], "new_tokens must be None where length is given"),
        (["--eos-id", "5", "--remask", "0.1"], "eos_id must be None where tokens may change"),
    ],
)
def test_what_does_not_go_together(capsys, monkeypatch, arguments, message):
    monkeypatch.setattr(Engine, "from_pretrained", lambda *_, **__: pytest.fail("loaded"))
    assert cli.main(["generate", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and message in err and err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--json", "--watch"], "not allowed with argument"),
        (["--stream", "--watch"], "not allowed with argument"),
        (["--window", "a"], "must be WINDOW or LOW,HIGH, got 'a'"),
        (["--logit-bias", "5"], "must be TOKEN:BIAS, got '5'"),
        (["--order", "fast"], "invalid choice: 'fast'"),
    ],
)
def test_what_is_no_option(capsys, arguments, message):
    with pytest.raises(SystemExit) as caught:
        cli.main(["generate", *arguments])
    assert caught.value.code == 2 and message in capsys.readouterr().err
