"""The endpoints, by OpenAI's own client and by hand."""

import asyncio
import json
import re
import socket
import time

import httpx2
import numpy as np
import openai
import pytest
from letters import LENGTH, SIGNS, Gate, Letters, letters_engine, logits, served, until
from prometheus_client.parser import text_string_to_metric_families

pytestmark = pytest.mark.usefixtures("single_thread")
EDLM = {"steps": 8, "num_candidates": 2}


@pytest.fixture(scope="module")
def engine():
    return letters_engine()


@pytest.fixture(scope="module")
def server(engine):
    with served(engine, max_body=20_000, max_prompt=500, max_outputs=8, max_steps=500) as there:
        yield there


@pytest.fixture(scope="module")
def url(server):
    return server[0]


@pytest.fixture(scope="module")
def client(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0, timeout=60) as client:
        yield client


@pytest.fixture(scope="module")
def slow_client():
    def slow(xt, sigma):
        time.sleep(0.03)
        return logits(xt, sigma)

    with (
        served(letters_engine(slow)) as (url, _),
        openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client,
    ):
        yield client


def complete(client, **fields):
    own = {**EDLM, **fields.pop("edlm", {})}
    return client.completions.create(model="letters", **fields, extra_body={"edlm": own})


# Completions


def test_the_text_is_that_of_generate(client, engine):
    config = {**EDLM, "new_tokens": 10, "temperature": 0.8, "top_p": 0.9, "batch_invariant": True}
    given = {"prompt": "ab ", "suffix": "xy", "seed": 5}
    ours = complete(
        client,
        **given,
        max_tokens=10,
        temperature=0.8,
        top_p=0.9,
        edlm={"batch_invariant": True},
    )
    alone = engine.generate(1, config=config, **given)
    (choice,) = ours.choices
    assert choice.text == alone.texts[0][3:-2] and choice.finish_reason == "length"
    assert choice.edlm["tokens"] == alone.sequences[0, 3:-2].tolist()
    assert choice.edlm["nfe"] == alone.nfe[0] and choice.edlm["ess"] == alone.ess[0].tolist()
    assert (ours.usage.prompt_tokens, ours.usage.completion_tokens) == (5, 10)
    assert ours.object == "text_completion" and ours.model == "letters" and ours.id[:5] == "cmpl-"


def test_several_prompts_and_several_texts_of_each(client, engine):
    ours = complete(client, prompt=["ab", "abc"], n=2, seed=5, max_tokens=6)
    assert [choice.index for choice in ours.choices] == [0, 1, 2, 3]
    seeds = [choice.edlm["seed"] for choice in ours.choices]
    for choice, prompt in zip(ours.choices, ["ab", "ab", "abc", "abc"], strict=True):
        config = {**EDLM, "new_tokens": 6}
        one = engine.generate(1, config=config, prompt=prompt, seed=[choice.edlm["seed"]])
        assert choice.text == one.texts[0][len(prompt) :]
    assert ours.usage.prompt_tokens == 5 and ours.usage.completion_tokens == 24
    two = engine.generate(4, config={**EDLM, "new_tokens": 6}, seed=5)
    assert two.seeds.tolist() == seeds


@pytest.mark.parametrize("prompt", [[1, 2, 3], [[1, 2, 3]], "abc", ["abc"]])
def test_a_prompt_is_text_or_tokens(client, prompt):
    texts = [complete(client, prompt=each, seed=1).choices[0].text for each in (prompt, "abc")]
    assert texts[0] == texts[1] and len(texts[0]) == LENGTH - 3


def test_without_a_prompt_or_a_seed(client, url):
    first, second = (
        httpx2.post(f"{url}/v1/completions", json={"edlm": EDLM}).json() for _ in range(2)
    )
    assert first["edlm"]["seed"] != second["edlm"]["seed"]
    again = complete(client, prompt=[1], seed=0)
    assert len(again.choices[0].text) == LENGTH - 1
    again = {"seed": first["edlm"]["seed"], "edlm": EDLM}
    third = httpx2.post(f"{url}/v1/completions", json=again).json()
    assert third["choices"] == first["choices"]


def test_log_probabilities_are_those_of_the_record(client, engine):
    given = {"prompt": "ab", "seed": 3}
    ours = complete(client, **given, max_tokens=7, logprobs=0).choices[0]
    record = engine.generate(1, config={**EDLM, "new_tokens": 7, "record": True}, **given).record
    assert ours.logprobs.token_logprobs == record.log_q[0, 2:].tolist()
    assert "".join(ours.logprobs.tokens) == ours.text
    assert ours.logprobs.text_offset == list(range(7)) and ours.logprobs.top_logprobs is None


def test_no_temperature_is_the_likeliest_token(client):
    texts = {
        complete(client, prompt="ab", temperature=0, seed=seed, edlm={"steps": None})
        .choices[0]
        .text
        for seed in (1, 1)
    }
    assert len(texts) == 1
    ours = complete(client, prompt="ab", temperature=0, logprobs=1, edlm={"window": 0})
    assert ours.choices[0].logprobs.token_logprobs == [0.0] * (LENGTH - 2)


def test_echo(client):
    plain, echo = (complete(client, prompt="ab", seed=1, echo=each) for each in (False, True))
    assert echo.choices[0].text == "ab" + plain.choices[0].text
    streamed = complete(client, prompt=[1, 2], seed=1, echo=True, stream=True)
    assert "".join(event.choices[0].text for event in streamed) == echo.choices[0].text


@pytest.mark.parametrize("logprobs", [None, 0])
@pytest.mark.parametrize("stream", [False, True])
def test_a_stop_ends_the_text_early(slow_client, stream, logprobs):
    client = slow_client
    edlm = {"order": "leftmost", "steps": None}
    whole = complete(client, prompt="ab", seed=2, edlm=edlm).choices[0]
    stop = [whole.text[5:8], "zz"]
    asked = {"prompt": "ab", "seed": 2, "stop": stop, "logprobs": logprobs, "edlm": edlm}
    if stream:
        events = [event.choices[0] for event in complete(client, **asked, stream=True)]
        text, last = "".join(event.text for event in events), events[-1]
        pieces = [p for event in events if event.logprobs for p in event.logprobs.tokens]
    else:
        last = complete(client, **asked).choices[0]
        text, pieces = last.text, last.logprobs.tokens if last.logprobs else []
    assert text == whole.text[: whole.text.index(stop[0])] and last.finish_reason == "stop"
    assert last.edlm["nfe"] <= 18  # and not the 22 of all tokens
    assert last.edlm["tokens"] == Letters().encode(text)
    assert "".join(pieces) == ("" if logprobs is None else text)


def test_an_eos_ends_the_text(client, engine):
    config = {**EDLM, "eos_id": SIGNS.index("e"), "batch_invariant": True}
    for seed in range(10):
        alone = engine.generate(1, config=config, seed=seed, prompt="ab")
        ours = complete(client, prompt="ab", seed=seed, edlm=config).choices[0]
        assert ours.text == alone.texts[0][2:]
        assert ours.finish_reason == ("stop" if len(ours.text) < LENGTH - 2 else "length")
        events = list(complete(client, prompt="ab", seed=seed, edlm=config, stream=True))
        assert "".join(event.choices[0].text for event in events) == ours.text
        assert events[-1].choices[0].finish_reason == ours.finish_reason


# Streams


@pytest.mark.parametrize("own", [{}, {"remask": 0.2}, {"order": "confidence"}])
def test_a_stream_gives_the_same(client, own):
    asked = {"prompt": ["ab", "c"], "n": 2, "seed": 4, "edlm": own}
    whole = complete(client, **asked)
    texts, seen, usage = [""] * 4, [[] for _ in range(4)], None
    for event in complete(client, **asked, stream=True, stream_options={"include_usage": True}):
        usage = event.usage or usage
        for choice in event.choices:
            texts[choice.index] += choice.text
            seen[choice.index].append(choice)
    assert texts == [choice.text for choice in whole.choices] and usage == whole.usage
    for choices, choice in zip(seen, whole.choices, strict=True):
        reasons = [each.finish_reason for each in choices]
        assert reasons == [None] * (len(reasons) - 1) + ["length"]
        assert choices[-1].edlm == choice.edlm


def test_provisional_text_is_what_is_not_certain(client):
    text, hidden = "", []
    asked = {"prompt": "ab", "seed": 4, "stream": True, "edlm": {"steps": None}}
    events = [event.choices[0] for event in complete(client, **asked)]
    for choice in events[:-1]:
        text += choice.text
        rest = choice.edlm["provisional"]
        size = sum(part if isinstance(part, int) else len(part) for part in rest)
        assert len(text) + size == LENGTH - 2
        hidden.append(sum(part for part in rest if isinstance(part, int)))
        assert choice.edlm["step"] == choice.edlm["nfe"]
    assert hidden == sorted(hidden, reverse=True) and hidden[-1] == 0 and max(hidden) > 10
    off = {**asked, "edlm": {"steps": None, "provisional": False}}
    assert all("provisional" not in event.choices[0].edlm for event in complete(client, **off))


# Chats


def test_a_chat(client, engine):
    messages = [{"role": "user", "content": "hello"}]
    parts = [{"role": "user", "content": [{"type": "text", "text": "hello"}]}]
    asked = {
        "model": "letters",
        "seed": 6,
        "max_completion_tokens": 12,
        "extra_body": {"edlm": EDLM},
    }
    ours = client.chat.completions.create(messages=messages, logprobs=True, **asked)
    config = {**EDLM, "new_tokens": 12, "eos_id": Letters.eos_token_id}
    alone = engine.generate(1, config=config, prompt=messages, seed=6)
    (choice,) = ours.choices
    assert choice.message.content == alone.texts[0][6:] and choice.message.role == "assistant"
    assert "".join(token.token for token in choice.logprobs.content) == choice.message.content
    assert all(token.logprob <= 0 for token in choice.logprobs.content)
    same = client.chat.completions.create(messages=parts, **asked)
    assert same.choices[0].message.content == choice.message.content
    events = [
        event.choices[0].delta
        for event in client.chat.completions.create(messages=messages, stream=True, **asked)
    ]
    assert events[0].role == "assistant" and events[1].role is None
    assert "".join(delta.content for delta in events) == choice.message.content


# What is refused


@pytest.mark.parametrize(
    ("fields", "status", "param", "message"),
    [
        ({"prompt": 5}, 400, "prompt", "prompt: must be a valid string or a valid list"),
        ({"prompt": []}, 400, "prompt", "must not be an empty list"),
        ({"prompt": [1, "a"]}, 400, "prompt", "prompt: must be"),
        ({"prompt": "a" * 501}, 400, "prompt", "500 characters or tokens at most, got 501"),
        ({"prompt": "a" * 30}, 400, "prompt", "must fit the length 24"),
        ({"prompt": [99]}, 400, "prompt", r"tokens in \[0, 30\), got 99"),
        ({"prompt": [10**30]}, 400, "prompt", "64 bits"),
        ({"prompt": "a", "suffix": "b" * 30}, 400, "prompt", "must fit"),
        ({"max_tokens": "5"}, 400, "max_tokens", "max_tokens: must be a valid integer, got '5'"),
        ({"max_tokens": True}, 400, "max_tokens", "valid integer"),
        ({"max_tokens": 0}, 400, "max_tokens", "greater than or equal to 1, got 0"),
        ({"max_tokens": 99}, 400, "max_tokens", "length must be <= 24"),
        ({"temperature": 3}, 400, "temperature", "less than or equal to 2"),
        ({"temperature": 0.5, "edlm": {"temperature": 1.5}}, 400, "edlm.temperature", "once"),
        ({"top_p": 0}, 400, "top_p", "greater than 0"),
        ({"n": 9}, 400, "n", "<= 8, got 1 times 9"),
        ({"n": 10**400}, 400, "n", "less than or equal"),
        ({"seed": 2**70}, 400, "seed", "less than"),
        ({"stop": [""]}, 400, "stop", "none empty"),
        ({"stop": list("abcde")}, 400, "stop", "1 to 4"),
        ({"stream": "yes"}, 400, "stream", "valid boolean"),
        ({"stream_options": {}}, 400, "stream_options", "must come with stream"),
        ({"logprobs": 5}, 400, "logprobs", "must be 0 or 1, got 5"),
        ({"logprobs": 1, "echo": True}, 400, "logprobs", "left out with echo"),
        ({"logprobs": 1, "edlm": {"correction": "smc"}}, 400, "logprobs", "record must be off"),
        ({"logit_bias": {"a": 1}}, 400, "logit_bias", "tokens as keys"),
        ({"logit_bias": {"99": 1}}, 400, "logit_bias", "got 99"),
        ({"best_of": 3}, 400, "best_of", "best_of is not supported by this server, got 3"),
        ({"frequency_penalty": 0.5}, 400, "frequency_penalty", "not supported"),
        ({"tools": [{}]}, 400, "tools", "not supported"),
        ({"promt": "a"}, 400, "promt", "there is no such field"),
        ({"edlm": 5}, 400, "edlm", "valid dictionary"),
        ({"edlm": {"stepps": 5}}, 400, "edlm", "no field stepps .nearest: steps"),
        ({"edlm": {"steps": 0}}, 400, "edlm.steps", "steps must be >= 1, got 0"),
        ({"edlm": {"steps": 501}}, 400, "edlm.steps", "<= 500 on this server, got 501"),
        ({"edlm": {"num_candidates": 10**9}}, 400, "edlm.num_candidates", "<= 64"),
        ({"edlm": {"window": [0.1]}}, 400, "edlm.window", "a pair"),
        ({"edlm": {"order": "best"}}, 400, "edlm.order", "one of ancestral"),
        ({"edlm": {"provisional": 1}}, 400, "edlm.provisional", "true or false"),
        ({"model": "gpt-4"}, 404, "model", "no model 'gpt-4' here"),
    ],
)
def test_what_is_refused_by_its_name(url, fields, status, param, message):
    answer = httpx2.post(f"{url}/v1/completions", json=fields)
    error = answer.json()["error"]
    assert answer.status_code == status and error["param"] == param, error
    assert error["type"] == "invalid_request_error"
    assert re.search(message, error["message"]), error["message"]


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content"),
        ({"messages": [{"role": "user", "content": "#"}]}, "messages"),
        ({"top_logprobs": 3}, "top_logprobs"),
        ({"response_format": {"type": "json_object"}}, "response_format"),
        ({"max_tokens": 1, "max_completion_tokens": 1}, "max_tokens"),
    ],
)
def test_chats_that_are_refused(url, fields, param):
    body = {"messages": [{"role": "user", "content": "a"}], **fields}
    answer = httpx2.post(f"{url}/v1/chat/completions", json=body)
    assert answer.status_code == 400 and answer.json()["error"]["param"] == param, answer.text


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"", "application/json", 400),
        (b"{", "application/json", 400),
        (b"[1]", "application/json", 400),
        (b"\xff\xfe", "application/json", 400),
        (b'{"edlm": ' + b"[" * 9000, "application/json", 400),
        (b'{"prompt": "a"}', "text/plain", 415),
        (b'{"prompt": "a"}', "", 415),
        (b'{"prompt": "' + b"a" * 30_000 + b'"}', "application/json", 413),
        (iter([b"a" * 15_000] * 2), "application/json", 413),
    ],
)
def test_bodies_that_are_refused(url, content, kind, status):
    headers = {"content-type": kind}
    answer = httpx2.post(f"{url}/v1/completions", content=content, headers=headers)
    assert answer.status_code == status and answer.json()["error"]["message"], answer.text


def test_what_changes_nothing_is_ignored(client):
    plain = complete(client, prompt="ab", seed=1)
    with_more = complete(client, prompt="ab", seed=1, user="me", best_of=1, presence_penalty=0)
    assert plain.choices == with_more.choices


def test_the_client_has_its_own_errors(client):
    with pytest.raises(openai.BadRequestError) as caught:
        complete(client, prompt="ab", edlm={"steps": 0})
    assert caught.value.param == "edlm.steps"
    with pytest.raises(openai.NotFoundError) as caught:
        client.completions.create(model="other", prompt="a")
    assert caught.value.code == "model_not_found"
    with pytest.raises(openai.InternalServerError, match="NaN"):
        complete(client, prompt="z")
    with pytest.raises(openai.InternalServerError, match="NaN"):  # no step was done: a status
        complete(client, prompt="z", stream=True)


def test_other_addresses(url, client):
    assert [model.id for model in client.models.list()] == ["letters"]
    assert client.models.retrieve("letters").owned_by == "edlm"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")
    assert httpx2.get(f"{url}/health").json() == {"status": "ok", "waiting": 0, "running": 0}
    for method, path, status in [("GET", "/nowhere", 404), ("GET", "/v1/completions", 405)]:
        answer = httpx2.request(method, url + path)
        assert answer.status_code == status and path in answer.json()["error"]["message"]
    assert "text/html" in httpx2.get(url).headers["content-type"]
    for path in ("/docs", "/redoc", "/openapi.json"):
        assert httpx2.get(url + path).status_code == 404


# Exactness, beside others


def test_random_arrivals_over_http(engine):
    random = np.random.default_rng(8)

    def some_body():
        own = {
            "steps": [None, 3, 10][random.integers(3)],
            "num_candidates": int(random.choice([1, 3])),
            "window": float(random.choice([0.4, 1.0])),
            "order": str(random.choice(["ancestral", "confidence", "leftmost"])),
            "batch_invariant": True,
        }
        return {
            "prompt": "abc"[: random.integers(0, 4)],
            "suffix": "xy"[: random.integers(0, 3)],
            "seed": int(random.integers(1000)),
            "max_tokens": int(random.choice([8, 14])),
            "temperature": float(random.choice([0.6, 1.0])),
            "stream": bool(random.random() < 0.3),
            "edlm": own,
        }

    bodies = [some_body() for _ in range(40)]
    pauses, dropped = random.random(40) / 3, random.random(40) < 0.2
    with served(engine, max_sequences=5) as (url, scheduler):

        async def ask(client, body, pause, drop):
            await asyncio.sleep(pause)
            post = client.post(f"{url}/v1/completions", json=body)
            if not drop:
                return await post
            with pytest.raises(asyncio.TimeoutError):
                await asyncio.wait_for(post, 0.001)
            return None

        async def ask_all():
            async with httpx2.AsyncClient(timeout=60) as client:
                every = zip(bodies, pauses, dropped, strict=True)
                return await asyncio.gather(*(ask(client, *each) for each in every))

        answers = asyncio.run(ask_all())
        until(lambda: scheduler.running == scheduler.waiting == 0)
    compared = 0
    for body, answer in zip(bodies, answers, strict=True):
        if answer is None:
            continue
        if body["stream"]:
            lines = [line[6:] for line in answer.text.splitlines() if line.startswith("data: {")]
            tokens = json.loads(lines[-1])["choices"][0]["edlm"]["tokens"]
        else:
            tokens = answer.json()["choices"][0]["edlm"]["tokens"]
        config = {**body["edlm"], "new_tokens": body["max_tokens"]}
        config["temperature"] = body["temperature"]
        known = {"prompt": body["prompt"] or None, "suffix": body["suffix"] or None}
        alone = engine.generate(1, config=config, seed=body["seed"], **known)
        end = alone.sequences.shape[1] - len(body["suffix"])
        assert tokens == alone.sequences[0, len(body["prompt"]) : end].tolist()
        compared += 1
    assert compared > 20


# Those that go, and those that wait


@pytest.fixture
def gated():
    gate = Gate()
    with served(
        letters_engine(gate, with_energy=False), max_sequences=2, max_queue=2, max_queue_seconds=30
    ) as (url, scheduler):
        yield url, scheduler, gate
        gate.open()


async def two_run(scheduler, gate):
    for _ in range(1000):
        if scheduler.running == 2:
            return
        gate.let()
        await asyncio.sleep(0.01)
    raise AssertionError("they do not run")


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_goes_takes_its_work_with_it(gated, stream):
    url, scheduler, gate = gated
    body = {"prompt": "a", "n": 2, "stream": stream, "edlm": {"steps": None}}

    async def go():
        async with httpx2.AsyncClient() as client:
            sent = client.stream("POST", f"{url}/v1/completions", json=body)
            asked = asyncio.create_task(sent.__aenter__())
            await two_run(scheduler, gate)
            gate.let(2)
            if stream:
                response = await asyncio.wait_for(asked, 20)
                await anext(response.aiter_lines())
            asked.cancel()

    asyncio.run(go())
    cancelled = ("completions", "cancelled")
    count = lambda: scheduler.metrics.requests.labels(*cancelled)._value.get()  # noqa: E731
    until(lambda: count() == 1)  # a step may well be under way
    calls = len(gate.rows)
    gate.let(2)
    until(lambda: scheduler.running == 0)
    assert len(gate.rows) <= calls + 2


def test_a_full_queue_is_told_to_come_again(gated):
    url, _, _ = gated
    with openai.OpenAI(base_url=f"{url}/v1", api_key="-", max_retries=0) as client:
        with pytest.raises(openai.RateLimitError) as caught:
            complete(client, prompt="a", n=3, max_tokens=4)
        assert caught.value.code == "queue_full"
        assert int(caught.value.response.headers["retry-after"]) >= 1


def test_a_body_that_breaks_off(engine):
    with served(engine) as (url, scheduler):
        host, port = url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as connection:
            head = "POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
            connection.sendall(f"{head}Content-Length: 100\r\n\r\n{{".encode())
        labels = "completions", "cancelled"
        until(lambda: scheduler.metrics.requests.labels(*labels)._value.get() == 1)
        assert httpx2.post(f"{url}/v1/completions", json={"edlm": EDLM}).status_code == 200


@pytest.mark.parametrize("seed", [-1, 2**53 + 1, 2**63 - 1, -(2**63)])
def test_all_seeds_of_64_bits(client, engine, seed):
    ours = complete(client, prompt="ab", seed=seed, max_tokens=5)
    alone = engine.generate(1, config={**EDLM, "new_tokens": 5}, prompt="ab", seed=seed)
    assert ours.choices[0].text == alone.texts[0][2:] and ours.edlm["seed"] == seed


def test_time_has_an_end(engine):
    gate = Gate()
    with served(letters_engine(gate, with_energy=False), max_seconds=0.2) as (url, scheduler):
        for stream in (False, True):
            answer = httpx2.post(f"{url}/v1/completions", json={"stream": stream}, timeout=20)
            assert answer.status_code == 504 and answer.json()["error"]["code"] == "timeout"
        gate.open()
        until(lambda: scheduler.running == 0)


def test_the_end_of_a_server_is_told_to_who_is_cut_off():
    gate = Gate()
    engine = letters_engine(gate, with_energy=False)

    async def ask(url, scheduler):
        async with httpx2.AsyncClient(timeout=30) as client:
            bodies = [{"stream": stream, "edlm": {"steps": None}} for stream in (False, True)]
            asked = [
                asyncio.create_task(client.post(f"{url}/v1/completions", json=body))
                for body in bodies
            ]
            await two_run(scheduler, gate)
            gate.let(4)
            await asyncio.sleep(0.1)
            scheduler.close(0.0)
            gate.open()
            return await asyncio.gather(*asked)

    with served(engine) as (url, scheduler):
        whole, streamed = asyncio.run(ask(url, scheduler))
        assert whole.status_code == 503 and whole.json()["error"]["code"] == "shutting_down"
        assert '"code": "shutting_down"' in streamed.text
        answer = httpx2.get(f"{url}/health")
        assert answer.status_code == 503 and answer.json()["status"] == "closing"
        late = httpx2.post(f"{url}/v1/completions", json={})
        assert late.status_code == 503 and late.headers["retry-after"]


# Keys and figures


def test_a_bearer_token(engine):
    with served(engine, api_key="secret") as (url, _):
        for headers in ({}, {"authorization": "Bearer wrong"}, {"authorization": "Basic secret"}):
            for path in ("/v1/models", "/metrics", "/v1/completions"):
                answer = httpx2.get(url + path, headers=headers)
                assert answer.status_code == 401
                assert answer.json()["error"]["code"] == "invalid_api_key"
        for path in ("/", "/health"):
            assert httpx2.get(url + path).status_code == 200
        with openai.OpenAI(base_url=f"{url}/v1", api_key="secret", max_retries=0) as client:
            assert complete(client, prompt="a").choices[0].text
        with (
            openai.OpenAI(base_url=f"{url}/v1", api_key="other", max_retries=0) as client,
            pytest.raises(openai.AuthenticationError),
        ):
            client.models.list()


def test_figures(engine):
    with served(engine) as (url, _):
        for seed in range(3):
            httpx2.post(f"{url}/v1/completions", json={"seed": seed, "edlm": EDLM})
        httpx2.post(f"{url}/v1/completions", json={"n": 0})
        httpx2.post(f"{url}/v1/completions", json={"prompt": "z"})
        answer = httpx2.get(f"{url}/metrics")
    families = {family.name: family for family in text_string_to_metric_families(answer.text)}
    value = {
        (sample.name, *sample.labels.values()): sample.value
        for family in families.values()
        for sample in family.samples
    }
    outcomes = {key[2]: count for key, count in value.items() if key[0] == "edlm_requests_total"}
    assert outcomes == {"ok": 3, "invalid": 1, "failed": 1}
    out = [engine.generate(1, config=EDLM, seed=seed) for seed in range(3)]
    nfe = sum(int(each.nfe[0]) for each in out)
    assert value["edlm_nfe_total",] == nfe
    assert value["edlm_energy_evaluations_total",] == 2 * nfe
    assert value["edlm_ess_count",] == nfe and value["edlm_steps_total",] >= nfe
    assert value["edlm_tokens_total", "completion"] == 3 * LENGTH
    assert value["edlm_steps_per_second",] > 0 and value["edlm_batch_rows_count",] >= nfe
    assert value["edlm_waiting_sequences",] == value["edlm_running_sequences",] == 0
    assert value["edlm_memory_budget_bytes",] > 0 and "edlm_queue_seconds" in families
