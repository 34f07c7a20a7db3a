"""Sessions: sequences that join and leave at any step are those they are alone."""

import numpy as np
import pytest
import torch
from enumeration import TinyDenoiser, ancestral, p_value
from tiny_models import HeadDenoiser, TableAR, table_denoiser

from edlm_engine import (
    ARResidualEnergy,
    CallableDenoiser,
    Engine,
    GenerationConfig,
    LogLinearSchedule,
    Request,
    SessionFull,
)

pytestmark = pytest.mark.usefixtures("single_thread")
VOCAB, LENGTH, MASK = 4, 6, 1
SCHEDULE = LogLinearSchedule(eps=0.2)
ACCEPT = 1e-3


@pytest.fixture(scope="module")
def engine():
    tiny = TinyDenoiser(vocab=VOCAB, length=LENGTH, mask_id=MASK, tilt=0.3)
    return Engine(HeadDenoiser(tiny), ARResidualEnergy(TableAR(VOCAB, LENGTH)), schedule=SCHEDULE)


def some_request(random, **fixed):
    """A request unlike others in whatever a configuration has."""
    config = GenerationConfig(
        steps=random.choice([None, 1, 3, 8, 20]),
        num_candidates=int(random.choice([1, 2, 5])),
        window=float(random.choice([0.0, 0.5, 1.0])),
        temperature=float(random.choice([0.7, 1.0])),
        top_p=float(random.choice([0.9, 1.0])),
        energy_temperature=float(random.choice([1.0, 2.0])),
        final=str(random.choice(["sample", "argmax"])),
        **fixed,
    )
    tokens = [v for v in range(VOCAB) if v != MASK]
    known = {
        "prompt": random.choice(tokens, random.integers(0, 4)).tolist(),
        "suffix": random.choice(tokens, random.integers(0, 3)).tolist(),
    }
    return Request(config=config, seed=int(random.integers(100)), **known)


def alone(engine, request):
    fields = {name: getattr(request, name) for name in ("prompt", "suffix", "config", "seed")}
    return engine.generate(1, **fields)


def same_generation(ours, theirs):
    for name in ("sequences", "seeds", "nfe", "energy_evaluations", "ess", "log_z"):
        a, b = getattr(ours, name), getattr(theirs, name)
        assert a.shape == b.shape and torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)), name
    return ours.texts == theirs.texts


@pytest.mark.parametrize("invariant", [False, True])
def test_random_arrivals_and_cancellations(engine, invariant):
    random = np.random.default_rng(3 + invariant)
    session, requests, found = engine.session(), {}, {}
    cancelled = set()
    for _ in range(60):
        for _ in range(random.integers(0, 3)):
            request = some_request(random, batch_invariant=invariant)
            requests[session.add(request)] = request
        running = sorted(requests.keys() - found.keys() - cancelled)
        if running and random.random() < 0.15:
            handle = int(random.choice(running))
            try:
                session.cancel(handle)
                cancelled.add(handle)
            except KeyError:  # it ended in the last step, and is reported below
                pass
        session.step()
        for handle, generation, error in session.finished():
            assert error is None and handle not in found
            found[handle] = generation
    while session.step():
        pass
    found |= {handle: generation for handle, generation, _ in session.finished()}
    assert len(session) == 0 and session.finished() == []
    assert len(cancelled) > 3 and found.keys() == requests.keys() - cancelled and len(found) > 30
    for handle, generation in found.items():
        assert same_generation(generation, alone(engine, requests[handle]))


def test_lengths_differ():
    sizes = {"mask_id": MASK, "vocab_size": VOCAB, "length": 9}
    calls = []

    def logits(xt, sigma):
        calls.append(xt.shape)
        return (xt.cumsum(1)[..., None] * torch.arange(VOCAB) % 3).float()

    engine = Engine(CallableDenoiser(logits, **sizes))
    session = engine.session()
    configs = [
        {"steps": 4, "length": 5},
        {"steps": 9, "length": 9, "temperature": 0.5},
        {"steps": 6, "length": 5, "temperature": 2.0},
    ]
    handles = [session.add({"config": config, "seed": 7}) for config in configs]
    assert session.step() == 3 and sorted(calls) == [(1, 9), (2, 5)]  # one call for each length
    while session.step():
        pass
    results = {done.handle: done.generation for done in session.finished()}
    for handle, config in zip(handles, configs, strict=True):
        assert same_generation(results[handle], engine.generate(1, config=config, seed=7))


def test_the_law_of_requests_that_join_midway():
    tiny = TinyDenoiser(vocab=4, length=3, mask_id=MASK, tilt=0.3)
    engine = Engine(table_denoiser(tiny), ARResidualEnergy(TableAR(4, 3)), schedule=SCHEDULE)
    late = GenerationConfig(steps=3, num_candidates=2)
    session, joined = engine.session(), []
    for first in range(3):
        other = {"config": {"steps": 5, "num_candidates": 2, "window": 0.5}}
        session.add({**other, "seed": first})
        session.step()
        joined += [
            session.add({"config": late, "seed": seed})
            for seed in range(first * 1000, first * 1000 + 1000)
        ]
    while session.step():
        pass
    results = {done.handle: done.generation for done in session.finished()}
    drawn = torch.cat([results[handle].sequences for handle in joined]).numpy()
    sigma = lambda t: float(SCHEDULE.sigma(torch.tensor(t, dtype=torch.float64)))  # noqa: E731
    times = SCHEDULE.times(late.steps).tolist()
    truth = ancestral(tiny, (MASK,) * 3, times, sigma, TableAR(4, 3).residual(MASK), 2)
    assert p_value(drawn, truth) > ACCEPT


def test_a_bad_request_ends_alone():
    table = table_denoiser(TinyDenoiser(vocab=5, length=3, mask_id=MASK, tilt=0.3))

    def logits(xt, sigma):
        values = table.logits(xt, sigma)
        values[..., 4] = -torch.inf  # given by the user only
        values[xt[:, 0] == 4] = torch.nan
        if (xt[:, 2] == 4).any():
            raise ArithmeticError("a model that cannot")
        return values

    sizes = {"mask_id": MASK, "vocab_size": 5, "length": 3}
    engine = Engine(CallableDenoiser(logits, **sizes), ARResidualEnergy(TableAR(5, 3)))
    good = [{"prompt": [2]}, {"suffix": [0]}, {"prompt": [0], "config": {"temperature": 0.5}}]
    bad = [{"prompt": [4], "seed": 9}, {"suffix": [4]}]
    session = engine.session()
    handles = [session.add(request) for request in (*bad[:1], *good, *bad[1:])]
    while session.step():
        pass
    results = {done.handle: done for done in session.finished()}
    assert isinstance(results[handles[0]].error, RuntimeError)
    assert "NaN" in str(results[handles[0]].error)
    assert isinstance(results[handles[-1]].error, ArithmeticError)
    for handle, request in zip(handles[1:-1], good, strict=True):
        whole = engine.generate(1, **request)
        assert same_generation(results[handle].generation, whole)
    assert results.keys() == set(handles) and len(session) == 0


def test_budgets(engine):
    config = {"steps": 2, "num_candidates": 1}
    session = engine.session(max_sequences=2)
    first = session.add({"config": config})
    session.add({"config": config})
    with pytest.raises(SessionFull, match="max_sequences 2"):
        session.add({"config": config})
    session.cancel(first)
    assert len(session) == 1 and session.tokens == LENGTH
    session.add({"config": config})
    while session.step():
        pass
    assert len(session) == 0 and len(session.finished()) == 2
    session = engine.session(max_tokens=2 * LENGTH + 1)
    session.add({"config": {**config, "length": LENGTH - 1}})
    session.add({"config": config})
    with pytest.raises(SessionFull, match=f"no room for {LENGTH}"):
        session.add({"config": config})
    with pytest.raises(ValueError, match="length must be <= max_tokens 5, got 6"):
        engine.session(max_tokens=5).add({"config": config})


def test_cancelling(engine):
    session = engine.session()
    handles = [session.add({"seed": seed}) for seed in range(3)]
    session.cancel(handles[1])
    assert session.step() == 2
    session.cancel(handles[0])
    assert session.step() == 1 and len(session) == 1
    for gone in (*handles[:2], 99):
        with pytest.raises(KeyError, match=f"no sequence with handle {gone} waits or runs"):
            session.cancel(gone)
    while session.step():
        pass
    (done,) = session.finished()
    assert done.handle == handles[2]
    assert same_generation(done.generation, engine.generate(1, seed=2))


def test_tokens_appear(engine):
    session = engine.session()
    handle = session.add({"prompt": [2, 3], "config": {"steps": None}})
    hidden = [int((session.xt(handle) == MASK).sum())]
    while session.step():
        hidden.append(int((session.xt(handle) == MASK).sum()))
    assert hidden == [4, 3, 2, 1, 0]
    assert session.xt(handle).tolist()[:2] == [2, 3]
    with pytest.raises(KeyError):
        session.xt(handle + 1)


@pytest.mark.parametrize(
    "fields",
    [
        {"steps": 6},
        {"steps": None, "window": 0.5},
        {"steps": 4, "order": "confidence", "guidance": 0.5},
        {"order": "threshold", "threshold": 0.5},
        {"steps": 5, "eos_id": 3},
        {"steps": 3, "correction": "smc"},
        {"steps": 4, "num_candidates": 1},
    ],
)
def test_progress(engine, fields):
    session, requests, seen = engine.session(), {}, {}
    for seed in range(6):  # they join and others leave, so plans are cut and joined
        config = GenerationConfig(**{"num_candidates": 3, **fields})
        request = Request(config=config, seed=seed, prompt=[2] * (seed % 3))
        handle = session.add(request)
        requests[handle] = request
        seen[handle] = [session.progress(handle)]
        session.step()
        for running in requests:
            seen[running].append(session.progress(running))
    ended = set()
    while len(ended) < len(requests):
        session.step()
        for running in requests.keys() - ended:
            seen[running].append(session.progress(running))
            if (seen[running][-1].xt != MASK).all():
                ended.add(running)
    found = {handle: generation for handle, generation, _ in session.finished()}
    calls = 2 if "guidance" in fields else 3 if "correction" in fields else 1
    for handle, states in seen.items():
        generation, request = found[handle], requests[handle]
        prompt = len(request.prompt)
        assert states[0].known.tolist() == [True] * prompt + [False] * (LENGTH - prompt)
        assert states[0].steps == states[0].nfe == 0 and states[0].ess.isnan()
        steps = [state.steps for state in states]
        assert steps == [min(i, steps[-1]) for i in range(len(steps))]
        assert states[-1].nfe == steps[-1] * calls == generation.nfe[0]
        assert states[-1].most_steps == steps[-1]
        assert all(state.steps <= state.most_steps for state in states)
        ess = generation.ess[0][~generation.ess[0].isnan()]
        last = float(states[-1].ess)
        assert last == ess[-1] if len(ess) else last != last
    with pytest.raises(KeyError, match="no sequence with handle 99 runs"):
        session.progress(99)


def test_nothing_to_do(engine):
    session = engine.session()
    assert session.step() == 0 and session.finished() == []
    handle = session.add({"prompt": [2] * LENGTH})
    assert session.step() == 0
    (done,) = session.finished()
    assert done.handle == handle and done.generation.sequences.tolist() == [[2] * LENGTH]
    assert done.generation.nfe.tolist() == [0]


@pytest.mark.parametrize(
    ("request_", "error", "message"),
    [
        ({"promt": [1]}, ValueError, "request has no field promt; it has config, seed"),
        ([1], TypeError, r"request must be a Request or a dict, got \[1\]"),
        ({"config": {"steps": 0}}, ValueError, "steps must be >= 1"),
        ({"seed": "x"}, TypeError, "seed must be an int"),
        ({"prompt": [2] * 9}, ValueError, "must fit the length 6"),
    ],
)
def test_bad_requests_change_nothing(engine, request_, error, message):
    session = engine.session()
    with pytest.raises(error, match=message):
        session.add(request_)
    assert len(session) == 0 and session.step() == 0


@pytest.mark.parametrize(("value", "error"), [(0, ValueError), (1.5, TypeError), (True, TypeError)])
def test_bad_budgets(engine, value, error):
    for name in ("max_sequences", "max_tokens"):
        with pytest.raises(error, match=f"{name} must be"):
            engine.session(**{name: value})
