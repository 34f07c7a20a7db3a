"""Energies that people bring, each against exact enumeration of whole sequences."""

import math
import re

import numpy as np
import pytest
import torch
from enumeration import TinyDenoiser, ancestral, p_value
from tiny_models import TableAR, table_denoiser

from edlm_engine import (
    ARResidualEnergy,
    ClassifierEnergy,
    ConstraintEnergy,
    Engine,
    GenerationConfig,
    LogLinearSchedule,
    RewardEnergy,
    TokenCountEnergy,
    tilted,
)

pytestmark = pytest.mark.usefixtures("single_thread")
MASK, VOCAB, LENGTH = 1, 4, 3
SCHEDULE = LogLinearSchedule(eps=0.2)
TINY = TinyDenoiser(vocab=VOCAB, length=LENGTH, mask_id=MASK, tilt=0.3)
AR = TableAR(VOCAB, LENGTH, seed=2)
LATE = TableAR(VOCAB, LENGTH, first_position=1, seed=3)
# Every sequence's own reward, and log-probabilities of two labels.
REWARDS = np.random.default_rng(4).normal(size=VOCAB**LENGTH)
LABELS = np.random.default_rng(5).normal(size=(VOCAB**LENGTH, 2)).astype(np.float32)
LETTERS = "a?bc"


class Letters:
    def decode(self, ids):
        return "".join(LETTERS[i] for i in ids)


def index(tokens):
    """Of tokens [n, L]: [n]; of a tuple: a number."""
    if isinstance(tokens, tuple):
        return np.polyval(tokens, VOCAB)
    return (tokens * VOCAB ** torch.arange(LENGTH).flip(0)).sum(1)


def index_of_text(text):
    return index(tuple(map(LETTERS.index, text)))


def log_p(x0, label):
    logits = LABELS[index(x0)].astype(np.float64)
    return logits[label] - np.log(np.exp(logits).sum())


reward = RewardEnergy(lambda tokens: REWARDS[index(tokens)], scale=2.0)
in_text = RewardEnergy(
    lambda texts: [float(REWARDS[index_of_text(text)]) for text in texts],
    scale=-1.5,
    on="text",
    tokenizer=Letters(),
)
label = ClassifierEnergy(lambda tokens: LABELS[index(tokens)], 1, scale=3.0, on="tokens")
pattern = ConstraintEnergy("a.*|.b.", penalty=2.5, tokenizer=Letters())
ends_differ = ConstraintEnergy(lambda tokens: tokens[:, 0] != tokens[:, 2], penalty=1.5)
counts = TokenCountEnergy({0: 1, 3: (1, None)}, penalty=1.2)
ar, carried, late = ARResidualEnergy(AR), ARResidualEnergy(AR, True), ARResidualEnergy(LATE)


def timed(x0, xt, log_q, t):
    return 2 * t[:, None] * (x0[:, :, 0] == 2)


def missing(x0):
    return abs(x0.count(0) - 1) + max(0, 1 - x0.count(3))


def keeps(x0):
    return re.fullmatch("a.*|.b.", "".join(LETTERS[i] for i in x0)) is not None


# name: (energy, the same by hand as a function of x0, xt, log q [L] and t)
CASES = {
    "reward of tokens": (reward, lambda x0, *_: -2 * REWARDS[index(x0)]),
    "reward of text": (in_text, lambda x0, *_: 1.5 * REWARDS[index(x0)]),
    "classifier": (label, lambda x0, *_: -3 * log_p(x0, 1)),
    "pattern": (pattern, lambda x0, *_: 2.5 * (not keeps(x0))),
    "predicate": (ends_differ, lambda x0, *_: 1.5 * (x0[0] == x0[2])),
    "counts": (counts, lambda x0, *_: 1.2 * missing(x0)),
    "denoiser, tilted": (
        tilted(reward, pattern),
        lambda x0, *_: -2 * REWARDS[index(x0)] + 2.5 * (not keeps(x0)),
    ),
    "AR model, tilted": (
        tilted(in_text, model=LATE),
        lambda x0, *others: 1.5 * REWARDS[index(x0)] + LATE.residual(MASK)(x0, *others),
    ),
    "geometric mixture": (
        0.3 * ar,
        lambda *given: 0.3 * AR.residual(MASK)(*given),
    ),
    "masked and t reach the parts": (
        timed + 2 * (carried + 0.5 * counts),
        lambda x0, xt, log_q, t: (
            2 * t * (x0[0] == 2) + 2 * AR.residual(MASK, True)(x0, xt, log_q, t) + 1.2 * missing(x0)
        ),
    ),
}


def sequences(energy, config, calls=4, batch=5000):
    engine = Engine(table_denoiser(TINY), energy, schedule=SCHEDULE)
    drawn = [engine.generate(batch, config=config, seed=s).sequences for s in range(calls)]
    return torch.cat(drawn).numpy()


def exact(energy, candidates):
    sigma = lambda t: float(SCHEDULE.sigma(torch.tensor(t, dtype=torch.float64)))  # noqa: E731
    times = SCHEDULE.times(3).tolist()
    return ancestral(TINY, (MASK,) * LENGTH, times, sigma, energy, candidates)


@pytest.mark.parametrize("name", CASES)
def test_whole_sequences_are_those_of_enumeration(name):
    energy, by_hand = CASES[name]
    drawn = sequences(energy, GenerationConfig(steps=3, num_candidates=2))
    assert p_value(drawn, exact(by_hand, 2)) > 1e-3
    assert p_value(drawn, exact(None, 2)) < 1e-6  # the energy matters, and its sign:
    assert p_value(drawn, exact(lambda *given: -by_hand(*given), 2)) < 1e-6


@pytest.mark.parametrize("order", ["ancestral", "confidence"])
def test_a_step_without_a_possible_candidate(order):
    """Ends the generation if impossible is meant; with a finite penalty nothing has happened."""
    config = GenerationConfig(steps=3, num_candidates=3, forbidden_tokens=(3,), order=order)
    for hard in (
        RewardEnergy(lambda tokens: torch.where(tokens[:, 0] == 3, 0.5, -math.inf)),
        ConstraintEnergy("c.*", penalty=math.inf, tokenizer=Letters()),
        TokenCountEnergy({3: 1}, penalty=math.inf),
    ):
        with pytest.raises(RuntimeError, match="log_weights"):
            sequences(hard, config, calls=1, batch=5)
    drawn = sequences(ConstraintEnergy("c.*", tokenizer=Letters()), config, calls=1, batch=500)
    free = sequences(RewardEnergy(lambda tokens: torch.zeros(len(tokens))), config, 1, 500)
    assert np.array_equal(drawn, free) and not (drawn == 3).any()
