"""Bad, slow and leaving clients: each is told what is wrong or dropped; the server stays well."""

import json
import os
import socket
import subprocess
import sys
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from serving.hostile import GOOD, Hostile, hostile_requests, post

MAX_BODY = 20_000
HEAD_SECONDS = BODY_SECONDS = 1.0
SERVER = f"""
import asyncio, time
import torch
from edlm_engine import CallableDenoiser, Engine
from edlm_engine.serving import app, command, protocol
from edlm_engine.serving.options import ServeOptions

torch.set_num_threads(1)
table = torch.randn(8, 6, generator=torch.Generator().manual_seed(0))

def logits(xt, sigma):
    time.sleep(0.002)
    return table[: xt.shape[1]].expand(len(xt), -1, -1)

app.BODY_SECONDS, protocol.HEAD_SECONDS = {BODY_SECONDS}, {HEAD_SECONDS}
denoiser = CallableDenoiser(logits, mask_id=5, vocab_size=6, length=8)
options = ServeOptions(
    max_body={MAX_BODY}, max_queue=64, max_sequences=8, max_seconds=20, max_steps=1000
)
server = command.Server(Engine(denoiser), options)
with command.bound("127.0.0.1", 0) as own:
    asyncio.run(server.serve(sockets=[own]))
"""


@pytest.fixture(scope="module")
def server():
    """(process id, address) of a server of a tiny model."""
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", SERVER], env=environment, **pipes) as process:
        line = process.stdout.readline()
        yield process.pid, ("127.0.0.1", int(line.rpartition(":")[2]))
        assert process.poll() is None
        process.terminate()
        out, err = process.communicate(timeout=30)
        assert "Traceback" not in err and "stopped; 0 running" in out, err


def exchange(address, request: Hostile) -> bytes:
    """What comes back; nothing where the connection was dropped."""
    answer = b""
    with socket.create_connection(address, timeout=20) as connection:
        try:
            keep = len(request.data) if request.keep is None else request.keep
            connection.sendall(request.data[:keep])
            if request.linger:
                connection.settimeout(request.linger)
                for byte in request.data[keep:-1]:
                    try:
                        answer += connection.recv(65536)
                        break  # the server has said something, or hung up
                    except TimeoutError:
                        connection.sendall(bytes([byte]))
                else:
                    raise AssertionError("a slow client was let be")
            if request.keep is not None and not request.linger:
                return b""
            while request.read is None or len(answer) < request.read:
                part = connection.recv(65536)
                if not part:
                    break
                answer += part
        except (ConnectionError, TimeoutError) as error:
            assert not isinstance(error, TimeoutError) or request.linger, request
    return answer


def judged(request: Hostile, answer: bytes) -> str:
    """How it ended; AssertionError for an answer that is not clear."""
    told = request.data[-200:], answer[:60], answer[-200:]
    if not answer or request.read is not None:
        assert request.kind not in ("field", "raw", "cut", "kind", "fuzz"), told
        return "dropped"
    head, _, body = answer.partition(b"\r\n\r\n")
    status = int(head.split()[1])
    if status == 400 and body == b"Invalid HTTP request received.":
        assert request.kind == "start", told
        return "400"
    if status == 200 and not request.must_fail:
        return "200"
    assert 400 <= status < 500, told
    error = json.loads(body)["error"]
    assert error["message"] and error["type"] == "invalid_request_error", told
    if request.fields:
        assert error["param"] is not None and error["param"].startswith(request.fields), told
    return str(status)


def good(address):
    """The tokens of a good request."""
    head, _, body = exchange(address, Hostile("good", post(json.dumps(GOOD).encode()))).partition(
        b"\r\n\r\n"
    )
    assert b" 200 " in head.splitlines()[0], body
    return json.loads(body)["choices"][0]["edlm"]["tokens"]


def resident(pid):
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def test_a_thousand_hostile_requests_change_nothing(server):
    pid, address = server
    want = good(address)
    assert all(0 <= token < 5 for token in want)
    requests = hostile_requests(0, MAX_BODY)

    def send(request):
        try:
            return judged(request, exchange(address, request))
        except AssertionError as error:
            return f"WRONG {request.kind}: {str(error)[-400:]}"

    ends, memory = Counter(), []
    with ThreadPoolExecutor(48) as pool:
        for start in range(0, 1000, 100):
            ends.update(pool.map(send, requests[start : start + 100]))
            assert good(address) == want  # in their midst
            memory.append(resident(pid))
    wrong = [end for end in ends if end.startswith("WRONG")]
    assert not wrong, "\n".join(wrong[:10])
    assert {"400", "404", "405", "413", "415"} <= set(ends)
    assert ends["dropped"] < 200 and ends["200"] < 150, ends
    _is_idle(address)
    assert len(os.listdir(f"/proc/{pid}/fd")) < 40
    # The first hundred fill caches, of every kind of message.
    assert memory[-1] - memory[1] < 8 * 2**20, memory


def _is_idle(address):
    """Everything that was left behind is cancelled, soon."""
    head = b"GET /health HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n"
    state = None
    for _ in range(100):
        state = json.loads(exchange(address, Hostile("health", head)).partition(b"\r\n\r\n")[2])
        if state == {"status": "ok", "waiting": 0, "running": 0}:
            return
        time.sleep(0.05)
    raise AssertionError(state)
