"""Every order against a slow restatement, token for token, and what holds in all of them."""

import math

import numpy as np
import pytest
import torch
from enumeration import TinyDenoiser, p_value
from tiny_models import TableAR, table_denoiser

from edlm_engine import ARResidualEnergy, Engine, GenerationConfig, LogLinearSchedule, reference
from edlm_engine.sampling.orders import ADAPTIVE, PLANNED
from edlm_engine.sampling.orders.timetable import blocks_of, quotas, shared_out
from edlm_engine.sampling.plan import plan_reveals
from edlm_engine.sampling.purposes import CANDIDATES, REMASK, RESAMPLE, REVEAL
from edlm_engine.sampling.rules import ORDERS

pytestmark = pytest.mark.usefixtures("single_thread")
VOCAB, LENGTH, MASK = 4, 6, 1
SCHEDULE = LogLinearSchedule(eps=0.2)
STATISTICS = ("margin", "entropy", "entropy_bounded")
TINY = TinyDenoiser(vocab=VOCAB, length=LENGTH, mask_id=MASK, tilt=0.3)
AR = TableAR(VOCAB, LENGTH)
# "resolved" goes with a correction of its own, and is tested there.
BY_THEMSELVES = [order for order in ADAPTIVE if order != "resolved"]


def sigma(t):
    return float(SCHEDULE.sigma(torch.tensor(t, dtype=torch.float64)))


# The restatement: one sequence, one step, one position at a time, in numpy and float64.


def key(seed, *coordinates):
    return int(reference.stream_keys(torch.tensor([seed]), *coordinates)[0])


def uniform_of(seed, *coordinates):
    return float(reference.uniform(torch.tensor([key(seed, *coordinates)]))[0])


def draw(logits, seed, number, position, candidates, temperature):
    rows = torch.tensor(logits)[None]
    keys = torch.tensor([key(seed, CANDIDATES, number, position)])
    tokens, log_q = reference.sample_candidates(
        rows, keys, candidates, forbidden_id=MASK, temperature=temperature
    )
    return tokens[0].tolist(), log_q[0].tolist()


def law_at(logits, temperature):
    weights = np.exp(np.array(logits, dtype=np.float64) / temperature)
    weights[MASK] = 0
    return weights / weights.sum()


def logits_of(xt, t, guidance, known):
    def raw(xt):
        return TINY.table[TINY.index(xt)].astype(np.float64) + TINY.tilt * sigma(t)

    given = raw(xt)
    if guidance == 0:
        return given
    free = raw([MASK if k else v for k, v in zip(known, xt, strict=True)])
    return given + guidance * (given - free)


def block_of(position, start, block_length):
    first = start.index(MASK)
    return 0 if block_length is None else (position - first) // block_length


def blocks_left(masked, start, block_length):
    """Of masked positions, those of the first block that has any."""
    first = min(block_of(p, start, block_length) for p in masked)
    return [p for p in masked if block_of(p, start, block_length) == first]


def quota_of(start, config, eligible, taken_in_block):
    """Of the block that is on: its share of the steps, and of that the present step's."""
    masked = [p for p in range(LENGTH) if start[p] == MASK]
    sizes = {}
    for p in masked:
        b = block_of(p, start, config.block_length)
        sizes[b] = sizes.get(b, 0) + 1
    ids = sorted(sizes)
    here = block_of(eligible[0], start, config.block_length)
    size, index = sizes[here], ids.index(here)
    if config.steps is None:
        return 1
    share = config.steps // len(ids) + (index < config.steps % len(ids))
    count = min(size, max(1, share))
    return size // count + (taken_in_block < size % count)


def adaptive_by_hand(start, seed, config, with_energy):
    """The finished sequence, the number of denoiser steps and of energy steps."""
    xt, number, energies, in_block, last_block = list(start), 0, 0, 0, None
    free = sum(v == MASK for v in start)
    known = [v != MASK for v in start]
    low, high = config.energy_times or (2, -2)
    while MASK in xt:
        number += 1
        masked = [p for p in range(LENGTH) if xt[p] == MASK]
        eligible = blocks_left(masked, start, config.block_length)
        block = block_of(eligible[0], start, config.block_length)
        in_block = in_block + 1 if block == last_block else 0
        last_block = block
        t = len(masked) / free
        use = with_energy and low <= t <= high
        logits = logits_of(xt, t, config.guidance, known)
        k = config.num_candidates if use else 1
        drawn = {
            p: draw(logits[p], seed, number, p, k, config.temperature)
            for p in (masked if use else eligible)
        }
        choice = 0
        if use:
            energies += 1
            weights = []
            for j in range(k):
                x0 = tuple(drawn[p][0][j] if p in drawn else v for p, v in enumerate(xt))
                log_q = np.array([drawn[p][1][j] if p in drawn else 0.0 for p in range(LENGTH)])
                weights.append(-AR.residual(MASK)(x0, tuple(xt), log_q, t))
            keys = torch.tensor([key(seed, RESAMPLE, number)])
            log_weights = torch.tensor([weights]) / config.energy_temperature
            choice = int(reference.resample(log_weights, keys)[0])
        scores = {}
        for p in eligible:
            law = law_at(logits[p], config.temperature)
            best = sorted(law, reverse=True)
            entropy = -sum(q * math.log(q) for q in law if q > 0)
            scores[p] = {
                "confidence": drawn[p][1][choice],
                "threshold": drawn[p][1][choice],
                "margin": best[0] - best[1],
                "entropy": -entropy,
                "entropy_bounded": -entropy,
            }[config.order]
        ranked = sorted(eligible, key=lambda p: (-scores[p], p))
        if config.order == "threshold":
            sure = [p for p in ranked if scores[p] >= math.log(config.threshold)] or ranked[:1]
        elif config.order == "entropy_bounded":
            sure, total = [], 0.0
            for p in ranked:
                if total > config.entropy_bound:
                    break
                sure.append(p)
                total -= scores[p]
        else:
            sure = ranked[: quota_of(start, config, eligible, in_block)]
        for p in sure:
            xt[p] = drawn[p][0][choice]
    return xt, number, energies


CANVASES = [[MASK] * LENGTH, [2, MASK, MASK, 3, MASK, MASK], [MASK, 0, MASK, MASK, MASK, 2]]
CASES = [
    {"steps": 4},
    {"steps": None},
    {"steps": 3, "block_length": 2},
    {"steps": 2, "block_length": 3, "temperature": 0.6},
    {"steps": 4, "guidance": 0.7},
]


@pytest.mark.parametrize("with_energy", [False, True])
@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("order", BY_THEMSELVES)
def test_adaptive_orders_by_hand(order, case, with_energy):
    config = GenerationConfig(
        order=order,
        num_candidates=3 if with_energy else 1,
        window=0.7,
        threshold=0.6,
        entropy_bound=0.9,
        **case,
    )
    energy = ARResidualEnergy(AR) if with_energy else None
    engine = Engine(table_denoiser(TINY), energy, schedule=SCHEDULE)
    seeds = list(range(9))
    canvas = torch.tensor([CANVASES[b % 3] for b in seeds])
    out = engine.generate(9, config=config, seed=seeds, canvas=canvas)
    for b, seed in enumerate(seeds):
        wanted = adaptive_by_hand(canvas[b].tolist(), seed, config, with_energy)
        got = out.sequences[b].tolist(), int(out.nfe[b]), int(out.ess[b].isfinite().sum())
        evaluations = wanted[1] * (2 if config.guidance else 1)
        assert got == (wanted[0], evaluations, wanted[2])


def planned_by_hand(start, seed, config):
    """step number -> positions it reveals, and what is hidden again before it."""
    masked = [p for p in range(LENGTH) if start[p] == MASK]
    u = {p: uniform_of(key(seed, REVEAL), p) for p in masked}
    sizes = {}
    for p in masked:
        sizes.setdefault(block_of(p, start, config.block_length), []).append(p)
    steps, plan, number = config.steps, {}, 0
    for index, b in enumerate(sorted(sizes)):
        places = sizes[b]
        if steps is None:
            order = places if config.order == "leftmost" else sorted(places, key=lambda p: -u[p])
            for p in order:
                number += 1
                plan[number] = [p]
            continue
        share = max(1, steps // len(sizes) + (index < steps % len(sizes)))
        if config.order == "leftmost":
            left = list(places)
            count = min(share, len(places))
            for i in range(count):
                number += 1
                some = len(places) // count + (i < len(places) % count)
                plan[number], left = left[:some], left[some:]
            continue
        probs = [*SCHEDULE.times(share).tolist(), 0.0]
        for i in range(1, share + 2):
            number += 1
            plan[number] = [p for p in places if probs[i] <= u[p] < probs[i - 1]]
    return {number: places for number, places in plan.items() if places}


@pytest.mark.parametrize("block_length", [None, 1, 2, 4, 9])
@pytest.mark.parametrize("steps", [None, 1, 3, 8])
@pytest.mark.parametrize("order", PLANNED)
def test_planned_orders_by_hand(order, steps, block_length):
    config = GenerationConfig(order=order, steps=steps, block_length=block_length)
    seeds = torch.arange(30)
    canvas = torch.tensor([CANVASES[b % 3] for b in range(30)])
    plan = plan_reveals(
        seeds, canvas == MASK, SCHEDULE, steps, order=order, block_length=block_length
    )
    for b in range(30):
        wanted = planned_by_hand(canvas[b].tolist(), b, config)
        found = {
            int(n): np.flatnonzero(plan.revealed_in[b] == n).tolist()
            for n in plan.numbers[b]
            if n > 0
        }
        assert found == {n: sorted(places) for n, places in wanted.items()}
        times = plan.times[b, : plan.nfe[b]]
        assert (np.diff(times) < 0).all() and times[-1] > 0 and times[0] <= 1


def test_time_is_that_of_the_share_masked():
    """Blocks and leftmost run from time 1 to 0 as the share still masked falls."""
    masked = torch.ones(1, 8, dtype=torch.bool)
    plan = plan_reveals(torch.arange(1), masked, SCHEDULE, 4, order="leftmost")
    assert plan.times.tolist() == [[1.0, 0.75, 0.5, 0.25]]
    plan = plan_reveals(torch.arange(1), masked, SCHEDULE, None, block_length=4)
    assert plan.times.tolist() == [[i / 8 for i in range(8, 0, -1)]]
    schedule = LogLinearSchedule(eps=0.5)
    plan = plan_reveals(torch.arange(40), masked.expand(40, 8), schedule, 2, block_length=4)
    # Two blocks, of one step at t = 1 and a fill at t = 0.5 each.
    assert set(plan.times[plan.numbers > 0]) == {1.0, 0.75, 0.5, 0.25}


def test_shares():
    assert shared_out(7, 3).tolist() == [3, 2, 2] and shared_out(2, 3).tolist() == [1, 1, 0]
    block = blocks_of(np.array([[0, 1, 1, 0, 0, 0, 0, 1, 1, 1]], dtype=bool), 2)
    assert block.tolist() == [[-1, 0, 0, -1, -1, -1, -1, 1, 1, 2]]
    assert quotas(block[0], 4).tolist() == [1, 1, 2, 1] and quotas(block[0], 1).tolist() == [
        2,
        2,
        1,
    ]
    assert quotas(block[0], None).tolist() == [1] * 5


# ReMDM


def test_remasking_by_hand():
    eta, steps = 0.4, 5
    seeds = torch.arange(50)
    canvas = torch.tensor([CANVASES[b % 3] for b in range(50)])
    plan = plan_reveals(seeds, canvas == MASK, SCHEDULE, steps, remask=eta)
    times = SCHEDULE.times(steps).tolist()
    again = 0
    for b in range(50):
        hidden = {p for p in range(LENGTH) if canvas[b, p] == MASK}
        free, column = set(hidden), 0
        for i in range(1, steps + 2):
            before, after = 1 - times[i - 1], 1 - times[i] if i <= steps else 1.0
            most = min(1.0, (1 - after) / before) if before > 0 else 1.0
            again_prob = min(eta, most)
            shown_prob = (after - (1 - again_prob) * before) / (1 - before)
            u = {p: uniform_of(key(int(seeds[b]), REMASK), i, p) for p in free}
            revealed = {p for p in hidden if i > steps or u[p] < shown_prob}
            back = {p for p in free - hidden if i <= steps and u[p] < again_prob}
            if revealed:
                assert plan.numbers[b, column] == i
                assert set(np.flatnonzero(plan.hidden[b, column])) == hidden
                assert set(np.flatnonzero(plan.shown[b, column])) == revealed
                column += 1
            again += len(back)
            hidden = (hidden - revealed) | back
        assert not hidden and column == plan.nfe[b]
    assert again > 50


def test_remasking_keeps_the_share_masked():
    """The marginal of ReMDM is that of the ancestral process at each time."""
    masked = torch.ones(4000, LENGTH, dtype=torch.bool)
    plan = plan_reveals(torch.arange(4000), masked, SCHEDULE, 6, remask=0.3)
    assert plan.numbers.shape[1] == 7
    for number, t in zip(range(1, 8), SCHEDULE.times(6).tolist(), strict=False):
        at = plan.numbers == number
        rate = plan.hidden[at].mean()
        # Steps that reveal nothing are left out, which 1 in (1 - rate)^6 of them does.
        if at.sum() > 3990:
            assert abs(rate - t) < 4 * math.sqrt(t * (1 - t) / (4000 * LENGTH)) + 1e-9


@pytest.mark.parametrize("with_energy", [False, True])
def test_remasked_tokens_are_drawn_again(with_energy):
    """Exact: in one dimension the law is that of a fresh draw at the last reveal."""
    tiny = TinyDenoiser(vocab=3, length=1, mask_id=MASK)
    energy = ARResidualEnergy(TableAR(3, 1)) if with_energy else None
    engine = Engine(table_denoiser(tiny), energy, schedule=SCHEDULE)
    config = GenerationConfig(steps=4, remask=0.8, num_candidates=2, window=1.0)
    out = engine.generate(20_000, config=config)
    law = law_at(tiny.table[MASK, 0], 1.0)
    if with_energy:
        pairs = {
            (a, b): law[a] * law[b] for a in range(3) for b in range(3) if a != MASK and b != MASK
        }
        ar = TableAR(3, 1)
        weight = {v: math.exp(ar.log_probs((v,))[0]) / law[v] for v in range(3) if v != MASK}
        chosen = np.zeros(3)
        for (a, b), mass in pairs.items():
            total = weight[a] + weight[b]
            chosen[a] += mass * weight[a] / total
            chosen[b] += mass * weight[b] / total
        law = chosen
    truth = {(v,): float(law[v]) for v in range(3) if law[v] > 0}
    assert p_value(out.sequences.numpy(), truth) > 1e-3
    assert (out.nfe > 1).float().mean() > 0.3  # positions come back


# What holds in every order


def config_of(order, **options):
    return GenerationConfig(order=order, num_candidates=3, window=0.6, threshold=0.7, **options)


EVERY = [config_of(order, steps=4) for order in ORDERS if order != "resolved"] + [
    config_of(order, steps=4, block_length=2) for order in ORDERS if order != "resolved"
]
EVERY += [config_of("ancestral", steps=6, remask=0.5), config_of("confidence", guidance=0.5)]


@pytest.mark.parametrize("config", EVERY, ids=lambda c: f"{c.order}-{c.block_length}-{c.remask}")
def test_alone_in_a_batch_and_in_a_session(config):
    engine = Engine(table_denoiser(TINY), ARResidualEnergy(AR), schedule=SCHEDULE)
    canvas = torch.tensor([CANVASES[b % 3] for b in range(6)])
    whole = engine.generate(6, config=config, seed=range(6), canvas=canvas)
    fixed = canvas != MASK
    assert torch.equal(whole.sequences[fixed], canvas[fixed]) and (whole.sequences != MASK).all()
    session = engine.session()
    handles = []
    for b in range(6):
        request = {"config": config, "seed": [b], "canvas": canvas[b : b + 1]}
        handles.append(session.add(request))
        session.step()
    while session.step():
        pass
    results = {done.handle: done.generation for done in session.finished()}
    for b, handle in enumerate(handles):
        alone = engine.generate(1, config=config, seed=[b], canvas=canvas[b : b + 1])
        for one in (alone, results[handle]):
            assert torch.equal(one.sequences[0], whole.sequences[b])
            assert one.nfe[0] == whole.nfe[b]
            steps = int(one.ess[0].isfinite().sum())
            assert torch.equal(one.ess[0, :steps], whole.ess[b, :steps])
            assert torch.equal(one.log_z[0, :steps], whole.log_z[b, :steps])


@pytest.mark.parametrize("order", BY_THEMSELVES)
def test_one_wait_a_step(order, monkeypatch):
    """The host reads where masks are left, and nothing else."""
    from edlm_engine.sampling.run import Run

    reads = []
    masked = Run.masked
    monkeypatch.setattr(Run, "masked", lambda self: (reads.append(1), masked(self))[1])
    engine = Engine(table_denoiser(TINY), ARResidualEnergy(AR), schedule=SCHEDULE)
    out = engine.generate(4, config=config_of(order, steps=4))
    assert len(reads) == out.nfe.max()


def test_a_callback_may_stop():
    engine = Engine(table_denoiser(TINY), schedule=SCHEDULE)
    calls = []

    def callback(iteration, iterations, xt):
        calls.append((iteration, iterations))
        return iteration < 2

    out = engine.generate(2, config={"steps": None}, callback=callback)
    assert calls == [(1, LENGTH), (2, LENGTH)] and ((out.sequences == MASK).sum(1) == 4).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"order": "rightmost"}, "order must be one of ancestral, leftmost"),
        ({"block_length": 0}, "block_length must be >= 1, got 0"),
        ({"remask": 1.5}, r"remask must be in \[0, 1\], got 1.5"),
        ({"remask": 0.5, "steps": None}, "remask must be 0 unless"),
        ({"remask": 0.5, "order": "leftmost"}, "remask must be 0 unless"),
        ({"threshold": 0.0}, r"threshold must be in \(0, 1\], got 0"),
        ({"entropy_bound": -1.0}, "entropy_bound must be in"),
        ({"guidance": math.inf}, "guidance must be in"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        GenerationConfig(**fields)
