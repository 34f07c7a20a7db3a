"""A thousand requests that no client should send, the same ones for a seed."""

import json
import random
import string
from dataclasses import dataclass

GOOD = {"prompt": [1, 2], "max_tokens": 3, "seed": 1, "edlm": {"steps": 2}}
FIELDS = {  # what no request may hold there
    "prompt": [True, 5, {}, [1.5], ["a", 1], [99], [-1], [2**70], [[[1]]], "text", ["text"]],
    "suffix": [3, [], {}, "text"],
    "max_tokens": [0, -1, 1.5, "3", [], {}, True, 10**6, 2**70],
    "n": [0, -1, 33, "2", [1], 2**65, 1.5],
    "temperature": [-1, "hot", [], 1e9, {}, True],
    "top_p": [0, -0.5, 1.5, "x", [], {}],
    "seed": ["x", 1.5, [], 2**64, {}, -(2**70)],
    "stop": ["", [""], 5, [1], ["a"] * 5, {}, [None]],
    "stream": ["yes", 1, [], {}],
    "stream_options": [{"include_usage": True}, 5, {"x": 1}, []],
    "logprobs": [2, -1, "x", 1.5, []],
    "logit_bias": [5, {"x": 1}, {"1": "x"}, {"99": 1}, {"1": 1e400}, [], {"-1": 1}],
    "model": ["other", 5, [], {}],
    "echo": ["x", 5, []],
    "edlm": [5, [], "x", {"steps": 0}, {"steps": "x"}, {"steps": 10**9}, {"no_such": 1}],
    "best_of": [2, "x"],
    "tools": [[{}], "x"],
    "no_such_field": [1, None, {}],
    "__proto__": [{}],
}
OWN = {
    "steps": [-1, 1.5, [], {}, True, 2**70],
    "num_candidates": [0, -1, 65, "x", 1.5, []],
    "window": [-1, 2, "x", [0.5, 0.1], [1, 2, 3], {}],
    "order": ["random", 5, [], {}],
    "correction": ["best", 5, {}],
    "length": [0, -5, 10**9, "x", []],
    "block_length": [0, -1, "x"],
    "guidance": ["x", []],
    "remask": [2, -1, "x"],
    "provisional": ["x", 5, []],
    "final": ["last", 5],
    "allowed_tokens": [[99], "x", 5, [[]], []],
    "threshold": ["x", -1, []],
    "sweeps": [0, 10**9, "x"],
    "record": ["x", 5],
    "top_k": [-1, "x", 1.5],
    "min_p": [-1, 2, "x"],
    "eos_id": [99, -1, "x"],
}
RAW = (
    *("", "[]", "5", "null", '"x"', "{", "{}}", '{"prompt": }', "{'prompt': 1}", "\x00", "nan"),
    *("[" * 5000, '{"a":' * 5000, '{"prompt": "\\ud800"}', '{"prompt": NaN}', "{" + " " * 5000),
    *('{"max_tokens": 1e999}', '{"max_tokens": ' + "9" * 5000 + "}", '{"prompt": [' + "1," * 3000),
)
STARTS = (  # of what is no HTTP, or not for this server
    b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
    b"GET\r\n\r\n",
    b"POST /v1/completions HTTP/9.9\r\n\r\n",
    b"GET /" + b"a" * 100_000 + b" HTTP/1.1\r\nhost: x\r\n\r\n",
    b"GET / HTTP/1.1\r\nhost: x\r\nconnection: close\r\nx: " + b"a" * 2_000_000 + b"\r\n\r\n",
    b"GET /../../etc/passwd HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    b"GET /v1/models/..%2f..%00 HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    b"DELETE /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    b"GET /v1/completions HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n",
    b"POST /nowhere HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: 0\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: -5\r\n\r\n",
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: x\r\n\r\n{}",
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-length: 2\r\ncontent-length: 9\r\n\r\n{}",
    b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ntransfer-encoding: chunked\r\n\r\nzz\r\n{}\r\n",
)


@dataclass(frozen=True)
class Hostile:
    """What is sent.

    data: all of it. keep: bytes after which the client waits instead, and hangs up; or None.
    linger: seconds between bytes from there on. read: how much of the answer is read before it
        hangs up; None is all. fields: names of which an error has one as its `param`, if any.
    must_fail: a 2xx would be wrong.
    """

    kind: str
    data: bytes
    keep: int | None = None
    linger: float = 0.0
    read: int | None = None
    fields: tuple[str, ...] = ()
    must_fail: bool = True


def post(body: bytes, path: str = "completions", kind: str = "application/json") -> bytes:
    head = f"POST /v1/{path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-type: {kind}\r\n"
    return f"{head}content-length: {len(body)}\r\n\r\n".encode() + body


def hostile_requests(seed: int, max_body: int) -> list[Hostile]:
    """1,000 of them, in an order of their own."""
    rng = random.Random(seed)
    found = [*_wrong_fields(rng, 450), *_malformed(rng, 200), *_sizes(rng, max_body, 80)]
    found += [*_fuzzed(rng, 110), *_slow(rng, 40), *_leaving(rng, 120)]
    rng.shuffle(found)
    assert len(found) == 1000
    return found


def _wrong_fields(rng, count):
    for i in range(count):
        if i % 3 == 0:
            name = rng.choice(sorted(OWN))
            body = GOOD | {"edlm": GOOD["edlm"] | {name: rng.choice(OWN[name])}}
            fields = (f"edlm.{name}", "edlm")
        else:
            name = rng.choice(sorted(FIELDS))
            body, fields = GOOD | {name: rng.choice(FIELDS[name])}, (name,)
        path = "completions"
        if i % 5 == 0 and name not in ("prompt", "suffix", "echo", "logprobs"):
            path = "chat/completions"
            messages = [{"role": "user", "content": "x"}]
            body = {**body, "messages": messages}
            fields = ()  # this model has no chat at all
        yield Hostile("field", post(json.dumps(body).encode(), path), fields=fields)


def _malformed(rng, count):
    good = json.dumps(GOOD).encode()
    for i in range(count):
        if i % 4 == 0:
            yield Hostile("start", rng.choice(STARTS))
        elif i % 4 == 1:
            yield Hostile("raw", post(rng.choice(RAW).encode("utf-8", "surrogatepass")))
        elif i % 4 == 2:
            yield Hostile("cut", post(good[: rng.randrange(len(good))]))
        else:
            kind = rng.choice(["text/plain", "", "multipart/form-data", "application/x-json"])
            yield Hostile("kind", post(good, kind=kind))


def _sizes(rng, max_body, count):
    for i in range(count):
        size = max_body + rng.randrange(1, 3 * max_body)
        if i % 2:
            head = "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            chunk = f"{size:x}\r\n".encode() + b" " * size + b"\r\n0\r\n\r\n"
            head += "transfer-encoding: chunked\r\nconnection: close\r\n\r\n"
            yield Hostile("size", head.encode() + chunk)
        else:
            yield Hostile("size", post(b'{"prompt": "' + b"a" * size + b'"}'))


def _fuzzed(rng, count):
    """A random JSON value anywhere; it may happen to be a good one."""
    for _ in range(count):
        body = dict(GOOD)
        for name in rng.sample(sorted(FIELDS), rng.randrange(1, 4)):
            body[name] = _value(rng, 3)
        yield Hostile("fuzz", post(json.dumps(body).encode()), must_fail=False)


def _value(rng, depth):
    kinds = [
        lambda: rng.choice([None, True, False, 0, -1, 1, 2**31, 2**63, -(2**64), 1e308, 1e-320]),
        lambda: "".join(rng.choices(string.printable + "é漢\u202e😀\x00", k=rng.randrange(20))),
        lambda: [_value(rng, depth - 1) for _ in range(rng.randrange(4))],
        lambda: {str(_value(rng, 0)): _value(rng, depth - 1) for _ in range(rng.randrange(4))},
    ]
    return rng.choice(kinds if depth else kinds[:2])()


def _slow(rng, count):
    """Bytes that come one by one, of the head or of the body, and never all of them."""
    data = post(json.dumps(GOOD).encode())
    body = data.index(b"\r\n\r\n") + 4
    for i in range(count):
        keep = rng.randrange(1, body - 2) if i % 2 else rng.randrange(body, len(data) - 40)
        yield Hostile("slow", data, keep=keep, linger=0.2)


def _leaving(rng, count):
    """Clients that hang up: within the head, the body, the wait, the stream."""
    stream = json.dumps(GOOD | {"stream": True, "max_tokens": 6, "edlm": {"steps": 200}})
    for i in range(count):
        data = post((stream if i % 2 else json.dumps(GOOD)).encode())
        keep = rng.randrange(len(data)) if i % 3 == 0 else None
        read = rng.choice([0, 1, 300]) if keep is None else 0
        yield Hostile("leaves", data, keep=keep, read=read, must_fail=False)
