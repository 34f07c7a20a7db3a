"""`edlm serve` as a process: the bundled model, and its end."""

import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import contextmanager

import httpx2
import pytest

from edlm_engine import Engine, cli

EDLM = {"steps": 6, "num_candidates": 2, "window": 0.5, "batch_invariant": True}


@contextmanager
def process(*options):
    """`edlm serve` on the bundled model: the process and its address."""
    command = [sys.executable, "-m", "edlm_engine.cli", "serve", "--port", "0", *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment)
    try:
        line = run.stdout.readline()
        assert line.startswith("edlm serve: edlm-novels at http://127.0.0.1:"), line
        yield run, line.split()[-1]
    finally:
        run.kill()
        run.communicate()


def events_of(lines):
    return [json.loads(line[6:]) for line in lines if line.startswith("data: {")]


def test_a_server_told_to_stop_ends_what_runs():
    long = {**EDLM, "steps": 4096}  # one position a step, for it must still run when told to stop
    body = {"prompt": "The old house ", "max_tokens": 96, "seed": 3, "stream": True, "edlm": long}
    with process() as (run, url):
        beside = {"prompt": "A", "max_tokens": 4, "edlm": {"steps": 1, "num_candidates": 2}}
        with httpx2.stream("POST", f"{url}/v1/completions", json=body, timeout=120) as response:
            lines = response.iter_lines()
            first = next(lines)
            assert httpx2.post(f"{url}/v1/completions", json=beside, timeout=60).status_code == 200
            run.send_signal(signal.SIGTERM)
            time.sleep(0.3)
            with pytest.raises(httpx2.TransportError):
                httpx2.post(f"{url}/v1/completions", json=beside)
            rest = list(lines)
        assert run.wait(30) == 0
        assert (
            run.stdout.read() == "edlm serve: stopped; 1 running sequences ended, 0 were cut off\n"
        )
    assert rest[-2] == "data: [DONE]"
    text = "".join(event["choices"][0]["text"] for event in events_of([first, *rest]))
    config = {**long, "new_tokens": 96}
    alone = Engine.from_pretrained().generate(1, config=config, prompt="The old house ", seed=3)
    assert text == alone.texts[0][len("The old house ") :]


def test_what_cannot_be_served_is_said_before_a_model_is_loaded(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(cli, "_engine", lambda _: pytest.fail("a model was loaded"))
    empty = tmp_path / "key"
    empty.write_text("\n")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = str(taken.getsockname()[1])
        for options, message in [
            (["--port", port], f"127.0.0.1 port {port} cannot be had: Address already in use"),
            (["--host", "256.1.1.1"], "256.1.1.1 port 8000 cannot be had"),
            (["--port", "99999"], "--port must be in [0, 65535], got 99999"),
            (["--max-queue", "0"], "max_queue must be >= 1, got 0"),
            (["--memory", "0"], "--memory must be > 0"),
            (["--candidates", "0"], "num_candidates must be >= 1"),
            (["--api-key-file", str(empty)], "must hold a token"),
            (["--api-key-file", str(empty / "none")], "Not a directory"),
        ]:
            assert cli.main(["serve", *options]) == 2, options
            assert message in capsys.readouterr().err


def test_a_key_comes_from_a_file_or_the_environment(monkeypatch, tmp_path):
    from edlm_engine.options import command_line
    from edlm_engine.serving.options import options_of

    def key_of(*options):
        args = command_line().parse_args(["serve", *options])
        return options_of(args, cli.config_of(args)).api_key

    monkeypatch.delenv("EDLM_API_KEY", raising=False)
    assert key_of() is None
    monkeypatch.setenv("EDLM_API_KEY", "from the environment")
    assert key_of() == "from the environment"
    file = tmp_path / "key"
    file.write_text("from-a-file\n")
    assert key_of("--api-key-file", str(file)) == "from-a-file"
