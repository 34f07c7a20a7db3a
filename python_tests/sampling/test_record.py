"""The record of a generation equals what the models alone say of its trajectory."""

import json
import math

import numpy as np
import pyarrow.parquet
import pytest
import torch
from enumeration import TinyDenoiser
from tiny_models import HeadDenoiser, TableAR, table_denoiser

from edlm_engine import ARResidualEnergy, Engine, GenerationConfig, LogLinearSchedule, reference
from edlm_engine.sampling.plan import plan_reveals
from edlm_engine.sampling.purposes import CANDIDATES

pytestmark = pytest.mark.usefixtures("single_thread")
VOCAB, LENGTH, MASK = 5, 6, 1
SCHEDULE = LogLinearSchedule(eps=0.2)
TINY = TinyDenoiser(vocab=VOCAB, length=LENGTH, mask_id=MASK)
AR = TableAR(VOCAB, LENGTH)
SEEDS = list(range(5))
CANVAS = torch.tensor([[MASK] * LENGTH, [2, MASK, MASK, 3, MASK, MASK]] * 2 + [[2] * LENGTH])


def law(logits, config):
    """The law of one position in float64, from the configuration's words."""
    logits = np.array(logits, dtype=np.float64)
    for token, value in config.logit_bias:
        logits[token] += value
    logits[list(config.forbidden_tokens)] = -np.inf
    if config.allowed_tokens is not None:
        logits[[v for v in range(VOCAB) if v not in config.allowed_tokens]] = -np.inf
    logits[MASK] = -np.inf
    p = np.exp(logits / config.temperature)
    p /= p.sum()
    if config.top_k:
        p[p < sorted(p)[-config.top_k]] = 0
        p /= p.sum()
    if config.top_p < 1:
        ordered = np.sort(p)[::-1]
        last = ordered[np.searchsorted(ordered.cumsum(), config.top_p)]
        p[p < last] = 0
        p /= p.sum()
    p[p < config.min_p * p.max()] = 0
    return p / p.sum()


def drawn(p, seed, number, position, candidates):
    keys = reference.stream_keys(torch.tensor([seed]), CANDIDATES, number, position)
    logits = torch.from_numpy(np.log(np.maximum(p, 1e-300))).masked_fill_(
        torch.from_numpy(p == 0), -torch.inf
    )
    tokens, _ = reference.sample_candidates(logits[None], keys, candidates)
    return tokens[0].tolist()


def by_hand(b, config, plan, choices, with_energy):
    """Replays a sequence: its tokens, and what a record of it must hold."""
    xt = CANVAS[b].tolist()
    known = [v != MASK for v in xt]
    step, log_q = [0] * LENGTH, [math.nan] * LENGTH
    entropy, total, energies = [math.nan] * LENGTH, 0.0, []
    for j in range(plan.nfe[b]):
        number, use = int(plan.numbers[b, j]), bool(plan.uses_energy[b, j])
        rows, at = np.array([b]), np.array([j])
        revealed = np.flatnonzero(plan.revealed(rows, at)[0]).tolist()
        masked = np.flatnonzero(plan.masked(rows, at)[0]).tolist()
        for p in masked:
            xt[p] = MASK  # where it was hidden again
        logits = TINY.table[TINY.index(xt)].astype(np.float64)
        if config.guidance:
            free = [MASK if k else v for k, v in zip(known, xt, strict=True)]
            without = TINY.table[TINY.index(free)].astype(np.float64)
            logits = logits + config.guidance * (logits - without)
        k = config.num_candidates if use else 1
        laws = {p: law(logits[p], config) for p in (masked if use else revealed)}
        tokens = {p: drawn(laws[p], SEEDS[b], number, p, k) for p in laws}
        log_qs = {p: np.log(laws[p][tokens[p]]) for p in laws}
        total += sum(each.sum() for each in log_qs.values())
        choice = 0
        if use:
            weights = []
            for c in range(k):
                x0 = tuple(tokens[p][c] if p in tokens else v for p, v in enumerate(xt))
                own = np.array([log_qs[p][c] if p in log_qs else 0.0 for p in range(LENGTH)])
                weights.append(-AR.residual(MASK)(x0, tuple(xt), own, 1.0))
            scaled = np.array(weights) / config.energy_temperature
            probs = np.exp(scaled - scaled.max())
            probs /= probs.sum()
            choice = choices[len(energies)]
            total += math.log(probs[choice])
            sums = [sum(log_qs[p][c] for p in log_qs) for c in range(k)]
            energies.append((-np.array(weights), sums, probs))
        for p in revealed:
            xt[p], step[p] = tokens[p][choice], number
            log_q[p] = log_qs[p][choice]
            entropy[p] = -sum(q * math.log(q) for q in laws[p] if q > 0)
    return xt, step, log_q, entropy, total, energies


CASES = [
    {"steps": 4},
    {"steps": None, "temperature": 0.7},
    {"steps": 3, "block_length": 2, "top_p": 0.8},
    {"steps": 6, "remask": 0.6},
    {"steps": 4, "top_k": 2, "order": "leftmost"},
    {"steps": 4, "min_p": 0.3, "logit_bias": {0: 1.5, 3: -math.inf}},
    {"steps": 4, "guidance": 0.8, "forbidden_tokens": (2,), "energy_temperature": 2.0},
    {"steps": 4, "allowed_tokens": (0, 2, 4), "temperature": 1.4},
]


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("with_energy", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_record_by_hand(case, with_energy, head):
    config = GenerationConfig(
        num_candidates=3 if with_energy else 1, window=0.7, record=True, **case
    )
    denoiser = HeadDenoiser(TINY) if head else table_denoiser(TINY)
    energy = ARResidualEnergy(AR) if with_energy else None
    engine = Engine(denoiser, energy, schedule=SCHEDULE)
    out = engine.generate(len(SEEDS), config=config, seed=SEEDS, canvas=CANVAS)
    record = out.record
    plan = plan_reveals(
        torch.tensor(SEEDS),
        CANVAS == MASK,
        SCHEDULE,
        config.steps,
        config.energy_times if with_energy else None,
        order=config.order,
        block_length=config.block_length,
        remask=config.remask,
    )
    for b in range(len(SEEDS)):
        choices = record.choice[b].tolist()
        xt, step, log_q, entropy, total, energies = by_hand(b, config, plan, choices, with_energy)
        assert out.sequences[b].tolist() == xt and record.step[b].tolist() == step
        np.testing.assert_allclose(record.log_q[b], log_q, atol=2e-5)
        np.testing.assert_allclose(record.entropy[b], entropy, atol=2e-5)
        assert abs(float(record.log_prob[b]) - total) < 1e-4
        assert sum(c >= 0 for c in choices) == len(energies)
        for s, (energy_, sums, probs) in enumerate(energies):
            np.testing.assert_allclose(record.energies[b, s], energy_, atol=2e-4)
            np.testing.assert_allclose(record.candidate_log_q[b, s], sums, atol=2e-4)
            np.testing.assert_allclose(record.weights[b, s], probs, atol=2e-4)
        assert record.energies[b, len(energies) :].isnan().all()


@pytest.mark.parametrize("order", ["confidence", "entropy", "threshold"])
def test_record_of_an_adaptive_order(order):
    config = GenerationConfig(
        order=order, steps=4, num_candidates=3, window=0.5, record=True, threshold=0.5
    )
    engine = Engine(table_denoiser(TINY), ARResidualEnergy(AR), schedule=SCHEDULE)
    seen = []

    def callback(iteration, iterations, xt):
        seen.append(xt.clone())

    out = engine.generate(5, config=config, seed=SEEDS, canvas=CANVAS, callback=callback)
    record = out.record
    free = CANVAS == MASK
    assert (record.step[~free] == 0).all() and (record.step[free] > 0).all()
    for b in range(4):
        before = CANVAS[b].tolist()
        for number, xt in enumerate(seen, start=1):
            revealed = [p for p in range(LENGTH) if xt[b, p] != before[p]]
            assert (record.step[b] == number).nonzero().flatten().tolist() == revealed
            logits = TINY.table[TINY.index(before)]
            for p in revealed:
                own = law(logits[p], config)
                assert abs(record.log_q[b, p] - math.log(own[xt[b, p]])) < 2e-5
                entropy = -sum(q * math.log(q) for q in own if q > 0)
                assert abs(record.entropy[b, p] - entropy) < 2e-5
            before = xt[b].tolist()
    assert record.log_prob[4] == 0 and (record.log_prob[:4] < 0).all()


def test_records_in_a_session():
    engine = Engine(table_denoiser(TINY), ARResidualEnergy(AR), schedule=SCHEDULE)
    config = GenerationConfig(steps=5, num_candidates=3, record=True)
    whole = engine.generate(5, config=config, seed=SEEDS, canvas=CANVAS).record
    session = engine.session()
    for b in SEEDS:
        session.add({"config": config, "seed": [b], "canvas": CANVAS[b : b + 1]})
        session.step()
    while session.step():
        pass
    for b, (_, generation, _) in enumerate(session.finished()):
        for name, value in vars(generation.record).items():
            ours = getattr(whole, name)[b]
            ours = ours[: value.shape[1]] if value.dim() == 3 or name == "choice" else ours
            torch.testing.assert_close(value[0], ours, rtol=0, atol=0, equal_nan=True)


def test_candidates_that_were_not_scored_are_none():
    engine = Engine(table_denoiser(TINY), ARResidualEnergy(AR), schedule=SCHEDULE)
    config = GenerationConfig(steps=3, num_candidates=8, record=True, ess_target=1.0)
    record = engine.generate(5, config=config, seed=SEEDS, canvas=CANVAS).record
    assert record.energies[:4].isinf().any()
    rows = json.loads(record.to_json(), parse_constant=lambda name: pytest.fail(name))
    for row, energies in zip(rows, record.energies.tolist(), strict=True):
        for ours, step in zip(row["energies"], energies, strict=False):
            assert ours == [e if math.isfinite(e) else None for e in step]


def test_nothing_is_recorded_by_default():
    assert Engine(table_denoiser(TINY)).generate(2).record is None


def test_as_numpy_json_and_parquet(tmp_path):
    engine = Engine(table_denoiser(TINY), ARResidualEnergy(AR), schedule=SCHEDULE)
    config = GenerationConfig(steps=3, num_candidates=2, record=True)
    record = engine.generate(5, config=config, seed=SEEDS, canvas=CANVAS).record
    arrays = record.to_numpy()
    assert arrays["log_q"].dtype == np.float32 and arrays["log_prob"].shape == (5,)
    rows = json.loads(record.to_json())
    assert len(rows) == 5 and rows[4]["log_q"] == [None] * LENGTH and rows[4]["choice"] == []
    taken = int((record.choice[1] >= 0).sum())
    assert len(rows[1]["energies"]) == taken and len(rows[1]["energies"][0]) == 2
    assert "NaN" not in record.to_json()
    record.to_parquet(tmp_path / "record.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "record.parquet").to_pylist() == rows
    assert [path.name for path in tmp_path.iterdir()] == ["record.parquet"]


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"top_k": -1}, ValueError, "top_k must be >= 0"),
        ({"top_k": 1.5}, TypeError, "top_k must be of type int"),
        ({"min_p": 1.1}, ValueError, r"min_p must be in \[0, 1\]"),
        ({"logit_bias": {0: math.inf}}, ValueError, r"logit_bias must be below \+inf"),
        ({"logit_bias": {0: math.nan}}, ValueError, "logit_bias must be below"),
        ({"logit_bias": {"a": 1.0}}, TypeError, "logit_bias must have tokens as keys"),
        ({"logit_bias": [1, 2]}, TypeError, "logit_bias must be a dict"),
        ({"forbidden_tokens": "abc"}, TypeError, "forbidden_tokens must be a list of tokens"),
        ({"forbidden_tokens": [-1]}, ValueError, "forbidden_tokens must be of tokens >= 0"),
        ({"allowed_tokens": []}, ValueError, "allowed_tokens must be of one token at least"),
        ({"record": 1}, TypeError, "record must be of type bool"),
    ],
)
def test_bad_fields(fields, error, message):
    with pytest.raises(error, match=message):
        GenerationConfig(**fields)


@pytest.mark.parametrize("name", ["logit_bias", "allowed_tokens", "forbidden_tokens"])
def test_tokens_outside_the_vocabulary(name):
    given = {9: 1.0} if name == "logit_bias" else [9]
    with pytest.raises(ValueError, match=rf"{name} must hold tokens in \[0, {VOCAB}\), got 9"):
        Engine(table_denoiser(TINY)).generate(config={name: given})


def test_a_configuration_as_json():
    config = GenerationConfig(logit_bias={3: -math.inf, 1: 2}, allowed_tokens=[1, 2], top_k=3)
    assert GenerationConfig.from_json(config.to_json()) == config
    assert config.logit_bias == ((1, 2.0), (3, -math.inf)) and hash(config)
