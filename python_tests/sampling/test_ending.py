"""The end at an EOS: the text that all steps would have given, in fewer of them."""

import math

import numpy as np
import pytest
import torch
from enumeration import TinyDenoiser
from tiny_models import TableAR, table_denoiser

from edlm_engine import ARResidualEnergy, CallableDenoiser, Engine, GenerationConfig, Request

pytestmark = pytest.mark.usefixtures("single_thread")
VOCAB, LENGTH, MASK, EOS = 4, 6, 1, 3
TINY = TinyDenoiser(vocab=VOCAB, length=LENGTH, mask_id=MASK)
AR = TableAR(VOCAB, LENGTH)
CANVAS = torch.full((40, LENGTH), MASK)
CANVAS[::3, 0] = 2
CANVAS[::4, 1] = EOS  # a known one ends nothing
CANVAS[::5, LENGTH - 1] = 0  # known after the end: it stays


class Letters:
    def encode(self, text):
        return [ord(letter) - 97 for letter in text]

    def decode(self, ids):
        return "".join(chr(97 + token) for token in ids)


def engine_with(energy):
    return Engine(table_denoiser(TINY), ARResidualEnergy(AR) if energy else None, Letters())


def end_of(xt, start):
    """Where a sequence ends, if it does: its first EOS that was free, with no mask before it."""
    for place, token in enumerate(xt):
        if token == MASK:
            return None
        if token == EOS and start[place] == MASK:
            return place
    return None


def by_hand(start, states):
    """A sequence of given states [steps, L] without an end: what it is with one, and its steps."""
    for taken, xt in enumerate(states, start=1):
        end = end_of(xt, start)
        if end is not None:
            filled = [p > end and start[p] == MASK for p in range(LENGTH)]
            return [EOS if f else v for f, v in zip(filled, xt, strict=True)], taken, end, filled
    return states[-1] if states else start, len(states), LENGTH, [False] * LENGTH


CASES = [
    {"steps": 5},
    {"steps": None},
    {"steps": 4, "window": 0.4, "batch_invariant": True},
    {"steps": 4, "order": "leftmost", "guidance": 0.5},
    {"steps": 4, "block_length": 2},
    {"steps": 4, "correction": "local"},
    {"steps": 3, "correction": "speculative", "order": "leftmost"},
    {"correction": "speculative", "order": "resolved"},
    {"steps": 4, "order": "confidence"},
    {"order": "threshold", "threshold": 0.5},
]


@pytest.mark.parametrize("with_energy", [False, True])
@pytest.mark.parametrize("case", CASES)
def test_the_text_of_all_steps_in_fewer(case, with_energy):
    if case.get("correction") == "speculative" and not with_energy:
        return
    engine = engine_with(with_energy)
    record = case.get("correction") != "speculative"
    fields = {"num_candidates": 3, "record": record, **case}
    given = {"seed": list(range(len(CANVAS))), "canvas": CANVAS}
    states = []
    whole = engine.generate(
        len(CANVAS),
        config=GenerationConfig(**fields),
        callback=lambda iteration, iterations, xt: states.append(xt.tolist()),
        **given,
    )
    out = engine.generate(len(CANVAS), config=GenerationConfig(eos_id=EOS, **fields), **given)
    each = 2 if case.get("guidance") else 1
    saved = 0
    for b, start in enumerate(CANVAS.tolist()):
        own = [state[b] for state in states[: int(whole.nfe[b]) // each]]
        xt, taken, end, filled = by_hand(start, own)
        assert out.sequences[b].tolist() == xt
        assert out.texts[b] == Letters().decode(xt[:end])
        assert int(out.nfe[b]) == taken * each
        saved += len(own) - taken
        scored = int((~out.ess[b].isnan()).sum())
        energy_steps = int((~whole.ess[b].isnan()).sum())
        if case.get("correction") != "speculative":
            assert scored == min(taken, energy_steps)
            assert int(out.energy_evaluations[b]) == 3 * scored
        for name in ("ess", "log_z"):
            ours, theirs = getattr(out, name)[b, :scored], getattr(whole, name)[b, :scored]
            assert torch.equal(ours, theirs)
        if record:
            same_record(out.record, whole.record, b, filled, scored)
        if taken < len(own) and b < 9:
            config = GenerationConfig(eos_id=EOS, **fields)
            alone = engine.generate(1, config=config, seed=[b], canvas=CANVAS[b : b + 1])
            assert alone.ess.shape[1] == scored or case.get("correction") == "speculative"
            assert alone.sequences[0].tolist() == xt
    assert saved > 10


def same_record(ours, theirs, b, filled, scored):
    gone = torch.tensor(filled)
    for name in ("step", "log_q", "entropy"):
        mine, wanted = getattr(ours, name)[b], getattr(theirs, name)[b].clone()
        wanted[gone] = 0 if name == "step" else math.nan
        assert torch.equal(mine.nan_to_num(7), wanted.nan_to_num(7)), name
    for name in ("energies", "candidate_log_q", "weights", "choice"):
        mine, wanted = getattr(ours, name)[b], getattr(theirs, name)[b]
        assert torch.equal(mine[:scored], wanted[:scored])
    assert (ours.choice[b, scored:] == -1).all()


def test_the_log_probability_is_of_what_was_drawn():
    """Without an energy: of all tokens that were revealed until the end, filled over or not."""
    config = {"steps": None, "record": True}
    given = {"seed": list(range(50)), "config": config}
    engine = engine_with(False)
    whole = engine.generate(50, **given)
    out = engine.generate(50, **given | {"config": config | {"eos_id": EOS}})
    drawn = whole.record.step <= out.nfe[:, None]
    wanted = whole.record.log_q.double().where(drawn, 0).sum(dim=1)
    torch.testing.assert_close(out.record.log_prob, wanted, rtol=0, atol=1e-5)
    assert (out.nfe < LENGTH).sum() > 10


def test_the_denoiser_is_not_called_for_what_has_ended():
    calls = []
    table = table_denoiser(TINY)

    def logits(xt, sigma):
        calls.append(len(xt))
        return table.logits(xt, sigma)

    engine = Engine(CallableDenoiser(logits, mask_id=MASK, vocab_size=VOCAB, length=LENGTH))
    out = engine.generate(20, config={"steps": 6, "eos_id": EOS})
    assert sum(calls) == out.nfe.sum() and len(calls) == out.nfe.max()
    assert calls[0] == 20 and calls == sorted(calls, reverse=True)


def test_many_steps_that_were_made_at_once_are_made_again():
    """More steps than are made at first, sequences that end at all of them."""

    def logits(xt, sigma):
        values = torch.zeros(*xt.shape, VOCAB)
        values[..., EOS] = -2.0
        return values

    engine = Engine(CallableDenoiser(logits, mask_id=MASK, vocab_size=VOCAB, length=60))
    config = GenerationConfig(steps=None, order="leftmost")
    whole = engine.generate(30, config=config)
    out = engine.generate(30, config={"steps": None, "order": "leftmost", "eos_id": EOS})
    first = (whole.sequences == EOS).long().argmax(dim=1)
    ends = torch.where((whole.sequences == EOS).any(dim=1), first, 59)
    assert torch.equal(out.nfe, ends + 1) and len(ends.unique()) > 10
    place = torch.arange(60)
    assert torch.equal(out.sequences, whole.sequences.where(place <= ends[:, None], EOS))


def test_in_a_session_as_alone():
    engine, random = engine_with(True), np.random.default_rng(5)
    session, requests, found = engine.session(max_tokens=10 * LENGTH), {}, {}
    orders = ["ancestral", "ancestral", "leftmost", "confidence", "entropy"]
    while len(requests) < 60:
        for _ in range(random.integers(0, 3)):
            config = GenerationConfig(
                steps=random.choice([None, 3, 8]),
                num_candidates=int(random.choice([1, 3])),
                window=float(random.choice([0.5, 1.0])),
                order=str(random.choice(orders)),
                eos_id=random.choice([None, 2, EOS]),
                record=bool(random.choice([False, True])),
            )
            prompt = random.choice([0, 2, 3], random.integers(0, 3)).tolist()
            request = Request(config=config, seed=int(random.integers(100)), prompt=prompt)
            if session.tokens + LENGTH <= 10 * LENGTH:
                requests[session.add(request)] = request
        session.step()
        found |= {done.handle: done.generation for done in session.finished()}
    while session.step():
        pass
    found |= {done.handle: done.generation for done in session.finished()}
    assert found.keys() == requests.keys() and len(session) == session.tokens == 0
    for handle, request in requests.items():
        ours, alone = found[handle], engine.generate(1, **vars(request))
        assert ours.texts == alone.texts
        for name in ("sequences", "nfe", "energy_evaluations", "ess", "log_z"):
            a, b = getattr(ours, name), getattr(alone, name)
            assert a.shape == b.shape and torch.equal(a.nan_to_num(-1), b.nan_to_num(-1)), name
        if request.config.record:
            for name, value in vars(alone.record).items():
                a = getattr(ours.record, name)
                assert torch.equal(a.nan_to_num(-1), value.nan_to_num(-1)), name


def test_a_generation_stopped_by_its_callback_has_no_end():
    out = engine_with(False).generate(
        30, config={"steps": None, "eos_id": EOS}, callback=lambda *_: False
    )
    for xt, text in zip(out.sequences.tolist(), out.texts, strict=True):
        end = end_of(xt, [MASK] * LENGTH)
        assert text == Letters().decode(xt[:end]) and xt.count(MASK) in (0, LENGTH - 1)


@pytest.mark.parametrize(
    ("fields", "error", "message"),
    [
        ({"eos_id": -1}, ValueError, "eos_id must be >= 0, got -1"),
        ({"eos_id": [3]}, TypeError, r"eos_id must be of type int, got \[3\]"),
        ({"eos_id": True}, TypeError, "eos_id must be of type int"),
        ({"eos_id": VOCAB}, ValueError, "eos_id must be a token below 4 and not the mask 1, got 4"),
        ({"eos_id": MASK}, ValueError, "and not the mask 1, got 1"),
        ({"eos_token_id": 3, "remask": 0.1}, ValueError, "eos_id must be None where tokens may"),
        ({"eos_id": 3, "correction": "smc"}, ValueError, "eos_id must be None where tokens may"),
        ({"eos_id": 3, "correction": "gibbs"}, ValueError, "eos_id must be None where tokens may"),
    ],
)
def test_what_an_eos_cannot_be(fields, error, message):
    with pytest.raises(error, match=message):
        engine_with(True).generate(config=fields)
