"""One session for many callers: who runs, who waits, and what each is given."""

import threading
import time
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from enumeration import TinyDenoiser, ancestral, p_value
from letters import LENGTH, Gate, letters_engine, until
from tiny_models import TableAR, table_denoiser

from edlm_engine import ARResidualEnergy, Engine, GenerationConfig, LogLinearSchedule
from edlm_engine.sampling.cohort import Waiting
from edlm_engine.serving import scheduler as scheduling
from edlm_engine.serving.memory import WORKSPACE, Need, need_of, total
from edlm_engine.serving.options import ServeOptions
from edlm_engine.serving.refusals import Cancelled, Closed, QueueFull, WaitedTooLong
from edlm_engine.serving.scheduler import Scheduler

pytestmark = pytest.mark.usefixtures("single_thread")
SOON = 30.0


@contextmanager
def working(engine, **options):
    scheduler = Scheduler(engine, ServeOptions(**options))
    scheduler.start()
    try:
        yield scheduler
    finally:
        scheduler.close()
        assert scheduler.join(SOON)


@pytest.fixture
def gated():
    """A scheduler whose every step waits at a gate; the gate opens at the end."""
    gate = Gate()
    opened = []

    def make(**options):
        context = working(letters_engine(gate, with_energy=False), **options)
        opened.append(context)
        return context.__enter__(), gate

    yield make
    gate.open()
    for context in opened:
        context.__exit__(None, None, None)


def request(seed=0, **config):
    return {"seed": seed, "config": {"steps": 8, "num_candidates": 2, **config}}


# What each is given


@pytest.mark.parametrize("invariant", [False, True])
def test_each_is_what_it_is_alone(invariant):
    random = np.random.default_rng(invariant)
    engine = letters_engine()
    tickets, cancelled = {}, 0
    lock = threading.Lock()

    def some_request():
        return {
            "seed": int(random.integers(1000)),
            "prompt": "abc"[: random.integers(0, 4)] or None,
            "suffix": "xy"[: random.integers(0, 3)] or None,
            "config": {
                "steps": random.choice([None, 2, 9, 30]),
                "num_candidates": int(random.choice([1, 3])),
                "window": float(random.choice([0.5, 1.0])),
                "temperature": float(random.choice([0.7, 1.0])),
                "order": str(random.choice(["ancestral", "confidence"])),
                "length": int(random.choice([12, LENGTH])),
                "batch_invariant": invariant,
            },
        }

    with working(engine, max_sequences=6) as scheduler:

        def client():
            nonlocal cancelled
            for _ in range(8):
                with lock:
                    asked = some_request()
                    pause, drop = random.random() / 50, random.random() < 0.2
                ticket = scheduler.submit(asked, watched=bool(asked["seed"] % 2))
                time.sleep(pause)
                if drop:
                    scheduler.cancel(ticket)
                tickets[ticket] = asked

        clients = [threading.Thread(target=client) for _ in range(5)]
        for thread in clients:
            thread.start()
        for thread in clients:
            thread.join()
        for ticket, asked in tickets.items():
            try:
                found = ticket.result(SOON)
            except Cancelled:
                cancelled += 1
                continue
            alone = engine.generate(1, **asked)
            assert torch.equal(found.sequences, alone.sequences)
            assert torch.equal(found.nfe, alone.nfe) and found.texts == alone.texts
    assert len(tickets) == 40 and 0 < cancelled < 20
    assert scheduler.running == scheduler.waiting == 0


def test_the_law_of_requests_that_join_midway():
    tiny = TinyDenoiser(vocab=4, length=3, mask_id=1, tilt=0.3)
    schedule = LogLinearSchedule(eps=0.2)
    engine = Engine(table_denoiser(tiny), ARResidualEnergy(TableAR(4, 3)), schedule=schedule)
    late = GenerationConfig(steps=3, num_candidates=2)
    with working(engine, max_sequences=300, max_queue=4000) as scheduler:
        joined = []
        for seed in range(2000):
            if seed % 100 == 0:
                config = {"steps": 5, "num_candidates": 2, "window": 0.5}
                scheduler.submit({"config": config, "seed": seed})
                time.sleep(0.002)
            joined.append(scheduler.submit({"config": late, "seed": seed}))
        drawn = torch.cat([ticket.result(120).sequences for ticket in joined]).numpy()
        starts = {ticket.begun for ticket in joined}
    assert len(starts) > 20  # they did not all begin together
    sigma = lambda t: float(schedule.sigma(torch.tensor(t, dtype=torch.float64)))  # noqa: E731
    times = schedule.times(late.steps).tolist()
    truth = ancestral(tiny, (1,) * 3, times, sigma, TableAR(4, 3).residual(1), 2)
    assert p_value(drawn, truth) > 1e-3


def test_bad_numbers_end_one_alone():
    engine = letters_engine()
    with working(engine) as scheduler:
        good = [scheduler.submit({**request(seed), "prompt": "ab"}) for seed in range(3)]
        bad = scheduler.submit({**request(), "prompt": "z"})
        more = scheduler.submit(request(7))
        with pytest.raises(RuntimeError, match="NaN"):
            bad.result(SOON)
        for seed, ticket in enumerate(good):
            alone = engine.generate(1, **request(seed), prompt="ab")
            assert torch.equal(ticket.result(SOON).sequences, alone.sequences)
        assert more.result(SOON).texts == engine.generate(1, **request(7)).texts


def test_a_step_that_fails_as_a_whole_ends_those_that_run(monkeypatch):
    engine = letters_engine()
    fail = threading.Event()
    step = scheduling.Session.step

    def once(session):
        if fail.is_set():
            fail.clear()
            raise ArithmeticError("of no sequence")
        return step(session)

    monkeypatch.setattr(scheduling.Session, "step", once)
    fail.set()
    with working(engine) as scheduler:
        with pytest.raises(ArithmeticError, match="of no sequence"):
            scheduler.submit(request()).result(SOON)
        assert scheduler.alive
        assert scheduler.submit(request()).result(SOON).nfe.item() > 0


def test_a_plan_that_fails_ends_one_alone(gated, monkeypatch):
    scheduler, gate = gated()
    running = scheduler.submit(request())
    gate.wait_for(1)
    planned = Waiting.planned

    def fails(waiting, sampler):
        if waiting.config.steps == 13:
            raise MemoryError("no room for its plan")
        return planned(waiting, sampler)

    monkeypatch.setattr(Waiting, "planned", fails)
    before, bad, after = (scheduler.submit(request(1, steps=steps)) for steps in (5, 13, 7))
    gate.open()
    with pytest.raises(MemoryError, match="no room"):
        bad.result(SOON)
    for ticket in (running, before, after):
        assert ticket.result(SOON).nfe.item() > 0


# Who runs


def test_a_cancelled_sequence_frees_its_rows_before_the_next_step(gated):
    scheduler, gate = gated(max_sequences=2)
    first, second = scheduler.submit(request(1)), scheduler.submit(request(2))
    waiting = scheduler.submit(request(3))
    gate.wait_for(1)
    if gate.rows[-1] == 1:  # the second came during the first's first step
        gate.let()
        gate.wait_for(2)
    assert gate.rows[-1] == 2 and waiting.begun is None
    scheduler.cancel(first)  # in the middle of a step
    before = len(gate.rows)
    gate.let()
    gate.wait_for(before + 1)
    assert gate.rows[-1] == 2 and waiting.begun is not None  # its room is taken already
    scheduler.cancel(waiting)
    gate.let()
    gate.wait_for(before + 2)
    assert gate.rows[-1] == 1
    for ticket in (first, waiting):
        with pytest.raises(Cancelled):
            ticket.result(0)
    scheduler.cancel(first)  # again: nothing
    gate.open()
    assert second.result(SOON).nfe.item() > 0


def test_a_short_one_leaves_early_beside_a_long_one(gated):
    scheduler, gate = gated()
    long = scheduler.submit(request(steps=None))
    gate.wait_for(1)
    short = scheduler.submit(request(steps=1))
    gate.let(2)
    short.result(SOON)
    assert not long.done and scheduler.running == 1
    gate.open()
    assert long.result(SOON).nfe.item() == LENGTH


def test_first_come_first_served(gated):
    scheduler, gate = gated(max_sequences=1)
    tickets = [scheduler.submit(request(seed, steps=1)) for seed in range(5)]
    gate.open()
    for ticket in tickets:
        ticket.result(SOON)
    begun = [ticket.begun for ticket in tickets]
    assert begun == sorted(begun) and len(set(begun)) == 5


def test_no_more_run_than_the_memory_holds(gated):
    engine = letters_engine(with_energy=False)
    need = need_of(engine, GenerationConfig(**request()["config"]), LENGTH)
    scheduler, gate = gated(memory=total([need] * 3))
    tickets = [scheduler.submit(request(seed)) for seed in range(7)]
    gate.open()
    for ticket in tickets:
        ticket.result(SOON)
    assert max(gate.rows) == 3
    small = Scheduler(engine, ServeOptions(memory=total([need]) - 1))
    with pytest.raises(ValueError, match=f"length {LENGTH} .* needs 0.1 GiB, and the server has"):
        small.submit(request())


def test_what_is_held_grows_with_what_is_asked():
    engine = letters_engine()
    held = {}
    for name, config, length in [
        ("least", {}, 12),
        ("long", {}, 24),
        ("many", {"num_candidates": 16}, 12),
        ("guided", {"guidance": 1.0}, 12),
        ("recorded", {"record": True}, 12),
        ("particles", {"correction": "smc", "num_candidates": 4}, 12),
    ]:
        config = GenerationConfig(**{"num_candidates": 2, "steps": 8, **config})
        held[name] = total([need_of(engine, config, length)])
    assert all(held[name] > held["least"] for name in held if name != "least")
    each = Need(held=10, during=100, alone=True)
    assert total([each, each]) == WORKSPACE + 20 + 100  # seen one at a time
    assert total([each, each._replace(alone=False)] * 2) == WORKSPACE + 40 + 200


# Who waits


def test_the_queue_is_bounded_and_a_request_waits_whole_or_not_at_all(gated):
    scheduler, gate = gated(max_sequences=1, max_queue=2)
    running = scheduler.submit(request())
    gate.wait_for(1)
    waiting = scheduler.submit(request(1))
    two = [scheduler.prepare(request(seed)) for seed in (2, 3)]
    with pytest.raises(QueueFull, match=r"1 of 2 places .* this request needs 2") as refused:
        scheduler.enqueue(two)
    assert refused.value.retry_after >= 1 and scheduler.waiting == 1
    scheduler.enqueue(two[:1])
    scheduler.cancel(waiting)
    assert scheduler.waiting == 1
    gate.open()
    assert running.result(SOON) and two[0].result(SOON)


def test_a_wait_has_an_end(gated):
    scheduler, gate = gated(max_sequences=1, max_queue_seconds=0.05)
    running = scheduler.submit(request())
    gate.wait_for(1)
    late = scheduler.submit(request(1))
    time.sleep(0.1)
    gate.open()
    with pytest.raises(WaitedTooLong, match=r"waited 0\.05 s"):
        late.result(SOON)
    assert running.result(SOON)


def test_closing_lets_run_what_runs_and_refuses_the_rest(gated):
    scheduler, gate = gated(max_sequences=1)
    running = scheduler.submit(request())
    gate.wait_for(1)
    waiting = scheduler.submit(request(1))
    scheduler.close(SOON)
    assert not scheduler.alive
    for late in (waiting.result, lambda: scheduler.submit(request(2))):
        with pytest.raises(Closed, match="shutting down"):
            late()
    gate.open()
    assert running.result(SOON).nfe.item() > 0
    assert scheduler.join(SOON) and scheduler.cut_off == 0


def test_closing_cuts_off_what_does_not_end(gated):
    scheduler, gate = gated()
    running = scheduler.submit(request(steps=None))
    gate.wait_for(1)
    scheduler.close(0.01)
    time.sleep(0.02)
    gate.let()
    with pytest.raises(Closed, match="stopped before the end"):
        running.result(SOON)
    assert scheduler.join(SOON) and scheduler.cut_off == 1
    gate.open()


def test_what_does_not_fit_is_refused_at_once():
    scheduler = Scheduler(letters_engine())
    with pytest.raises(ValueError, match="steps must be >= 1"):
        scheduler.submit(request(steps=0))
    with pytest.raises(ValueError, match="prompt and suffix must fit the length 24"):
        scheduler.submit({**request(), "prompt": "a" * 30})
    assert scheduler.waiting == 0
    scheduler.start()
    with pytest.raises(RuntimeError, match="started already"):
        scheduler.start()
    scheduler.close()
    assert scheduler.join(SOON)


def test_a_reader_sees_the_text_appear_and_nothing_piles_up(gated):
    import asyncio

    scheduler, gate = gated()
    ticket = scheduler.submit(request(steps=None), watched=True)

    async def read():
        seen = []
        async for snapshot in ticket.snapshots():
            seen.append(snapshot)
            gate.let(1 if len(seen) < 5 else LENGTH)
        return seen

    gate.let()
    seen = asyncio.run(read())
    hidden = [snapshot.tokens.count(0) for snapshot in seen]
    assert hidden == sorted(hidden, reverse=True) and len(set(hidden)) == len(hidden)
    assert hidden[:5] == [23, 22, 21, 20, 19] and seen[0].most_steps == LENGTH
    until(lambda: ticket.done)


@pytest.mark.parametrize(
    ("field", "value", "error"),
    [
        ("max_queue", 0, ValueError),
        ("max_sequences", 1.5, TypeError),
        ("max_seconds", -1, ValueError),
        ("memory", True, TypeError),
        ("api_key", "", ValueError),
        ("api_key", "schl\u00fcssel", ValueError),
    ],
)
def test_bad_options(field, value, error):
    with pytest.raises(error, match=f"{field} must be"):
        ServeOptions(**{field: value})
