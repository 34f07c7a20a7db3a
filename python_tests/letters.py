"""A small engine of letters for tests of serving, and a server of it on loopback."""

import threading
import time
from contextlib import contextmanager

import torch
import uvicorn

from edlm_engine import CallableDenoiser, Engine
from edlm_engine.serving.app import create_app
from edlm_engine.serving.options import ServeOptions

SIGNS = "#abcdefghijklmnopqrstuvwxyz .?"  # the first is the mask
MASK, LENGTH = 0, 24


class Letters:
    """A token for each sign."""

    chat_template = "{messages}"
    eos_token_id = SIGNS.index(".")

    def encode(self, text):
        return [SIGNS.index(sign) for sign in text]

    def decode(self, ids):
        return "".join(SIGNS[i] for i in ids)

    def apply_chat_template(self, messages, **_):
        return self.encode(" ".join(message["content"] for message in messages) + "?")


def logits(xt, sigma):
    """Differ with every known token and the time. z is never drawn; a text that has one fails."""
    weights = torch.arange(1, len(SIGNS) + 1)
    mixed = (xt.cumsum(1)[..., None] * weights + xt.sum(1)[:, None, None]) % 11
    values = mixed.float() / 3 + sigma[:, None, None] * weights.cos()
    values[..., SIGNS.index("z")] = -torch.inf
    return values.masked_fill((xt == SIGNS.index("z")).any(1)[:, None, None], torch.nan)


def energy(x0, xt, log_q, t):
    return (x0.double() * torch.arange(x0.shape[-1])).sin().sum(-1).float()


def letters_engine(fn=logits, *, length=LENGTH, with_energy=True):
    sizes = {"mask_id": MASK, "vocab_size": len(SIGNS), "length": length}
    denoiser = CallableDenoiser(fn, **sizes)
    return Engine(denoiser, energy if with_energy else None, Letters())


class Gate:
    """A denoiser's function that waits before it answers, until `let` says how often."""

    def __init__(self):
        self.rows, self._free, self._open = [], threading.Semaphore(0), False

    def __call__(self, xt, sigma):
        self.rows.append(len(xt))
        assert self._open or self._free.acquire(timeout=30), "nobody opened the gate"
        return logits(xt, sigma)

    def wait_for(self, calls):
        """Until so many calls have come."""
        until(lambda: len(self.rows) >= calls)

    def let(self, calls=1):
        for _ in range(calls):
            self._free.release()

    def open(self):
        self._open = True
        self.let()


def until(condition, seconds=20.0):
    """Wait for a condition that holds soon."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come to be"
        time.sleep(0.002)


@contextmanager
def served(engine, **options):
    """A server in a thread: its address, and its scheduler."""
    app = create_app(engine, ServeOptions(**{"name": "letters", "drain_seconds": 5.0, **options}))
    config = uvicorn.Config(app, port=0, log_config=None, access_log=False)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    until(lambda: server.started)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}", app.state.scheduler
    finally:
        server.should_exit = True
        thread.join(30)
        assert not thread.is_alive()
