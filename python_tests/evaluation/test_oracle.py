"""Hidden Markov models against the sum over all paths of states and all sequences."""

import itertools

import numpy as np
import pytest
import torch
from enumeration import p_value

from edlm_engine import ARResidualEnergy, Engine, GenerationConfig
from edlm_engine.energies.residual import sequence_log_probs
from edlm_engine.evaluation.oracle import HiddenMarkov, OracleAR, OracleDenoiser

pytestmark = pytest.mark.usefixtures("single_thread")

LENGTH, TOKENS, MASK = 4, 3, 3
CANVASES = torch.tensor([[3, 3, 3, 3], [3, 0, 3, 2], [1, 3, 3, 3], [2, 2, 3, 0], [0, 1, 2, 0]])


def sparse():
    """A law in which some states never emit some tokens."""
    emission = torch.tensor([[0.5, 0.5, 0.0], [0.0, 0.25, 0.75]], dtype=torch.float64)
    transition = torch.tensor([[0.9, 0.1], [0.3, 0.7]], dtype=torch.float64)
    return HiddenMarkov(torch.tensor([0.2, 0.8]), transition, emission)


@pytest.fixture(
    scope="module",
    params=[
        HiddenMarkov.random(2, TOKENS, seed=3),
        HiddenMarkov.random(4, TOKENS, seed=4),
        HiddenMarkov.chain(torch.full((3,), 1 / 3), torch.eye(3) * 0.7 + 0.1),
        sparse(),
    ],
    ids=["two states", "four states", "chain", "sparse"],
)
def law(request):
    return request.param


def by_paths(law):
    """{sequence: p}, by the definition."""
    initial, transition, emission = (x.numpy() for x in (law.initial, law.transition, law.emission))
    table = dict.fromkeys(itertools.product(range(TOKENS), repeat=LENGTH), 0.0)
    for path in itertools.product(range(law.states), repeat=LENGTH):
        p_path = initial[path[0]] * np.prod([transition[a, b] for a, b in itertools.pairwise(path)])
        for x in table:
            table[x] += p_path * np.prod([emission[z, v] for z, v in zip(path, x, strict=True)])
    return table


def given(table, xt):
    """The table, restricted to what agrees with xt, and its sum."""
    fits = {
        x: p for x, p in table.items() if all(a in (MASK, b) for a, b in zip(xt, x, strict=True))
    }
    return fits, sum(fits.values())


def test_log_probabilities_are_sums_over_paths(law):
    table = by_paths(law)
    assert sum(table.values()) == pytest.approx(1, abs=1e-12)
    for xt, log_p in zip(CANVASES.tolist(), law.log_prob(CANVASES).tolist(), strict=True):
        assert np.exp(log_p) == pytest.approx(given(table, xt)[1], rel=1e-12)


def test_marginals_are_those_of_the_conditional_law(law):
    table, found = by_paths(law), law.marginals(CANVASES)
    assert found.dtype == torch.float64
    for xt, rows in zip(CANVASES.tolist(), found, strict=True):
        for place in range(LENGTH):
            others = [MASK if i == place else v for i, v in enumerate(xt)]
            fits, total = given(table, others)
            exact = [sum(p for x, p in fits.items() if x[place] == v) / total for v in range(3)]
            np.testing.assert_allclose(rows[place].numpy(), exact, rtol=1e-11, atol=1e-15)


def test_next_tokens_are_those_of_the_conditional_law(law):
    table = by_paths(law)
    tokens = torch.tensor(list(table))
    found = law.next_token(tokens)
    for x, rows in zip(table, found, strict=True):
        for place in range(LENGTH):
            fits, total = given(table, [*x[:place], *[MASK] * (LENGTH - place)])
            exact = [sum(p for y, p in fits.items() if y[place] == v) / total for v in range(3)]
            np.testing.assert_allclose(rows[place].numpy(), exact, rtol=1e-11, atol=1e-15)


def test_completions_are_enumerated_with_their_probabilities(law):
    table = by_paths(law)
    for canvas in CANVASES:
        fits, total = given(table, canvas.tolist())
        whole, p = law.enumerate(canvas)
        assert [tuple(x) for x in whole.tolist()] == list(fits)
        np.testing.assert_allclose(p.numpy(), np.array(list(fits.values())) / total, rtol=1e-10)


def test_draws_have_the_conditional_law(law):
    table, seeds = by_paths(law), torch.arange(12000)
    for canvas in CANVASES[:3]:
        drawn = law.draw(canvas.expand(len(seeds), -1), seeds)
        fits, total = given(table, canvas.tolist())
        assert p_value(drawn.numpy(), {x: p / total for x, p in fits.items()}) > 1e-4
    mixed = law.draw(CANVASES[:3], seeds[:3])
    for row in range(3):  # a row depends on its own seed alone
        alone = law.draw(CANVASES[row : row + 1], seeds[row : row + 1])
        assert mixed[row].tolist() == alone[0].tolist()


def test_the_left_to_right_model_scores_as_the_law(law):
    tokens = torch.tensor(list(by_paths(law)))
    possible = law.log_prob(tokens) > -np.inf
    found = sequence_log_probs(OracleAR(law, LENGTH), tokens[possible])
    np.testing.assert_allclose(found.numpy(), law.log_prob(tokens)[possible].numpy(), rtol=1e-5)


def test_one_position_at_a_time_is_the_law_and_parallel_steps_are_not(law):
    table, ar = by_paths(law), OracleAR(law, LENGTH)
    exact = {x: p for x, p in table.items() if p > 0}
    plain = Engine(OracleDenoiser(law, LENGTH))
    one = plain.generate(6000, config=GenerationConfig(steps=None)).sequences.numpy()
    assert p_value(one, exact) > 1e-4
    config = GenerationConfig(steps=1, num_candidates=1)
    assert p_value(plain.generate(6000, config=config).sequences.numpy(), exact) < 1e-9
    corrected = Engine(OracleDenoiser(law, LENGTH), ARResidualEnergy(ar))
    config = GenerationConfig(steps=1, num_candidates=200)
    many = corrected.generate(1000, config=config).sequences.numpy()
    assert p_value(many, exact) > 1e-4


def test_long_sequences_keep_their_precision():
    law = HiddenMarkov.random(16, 32, seed=1, sharpness=4)
    free = torch.full((3, 256), law.mask_id)
    x = law.draw(free, [5, 6, 7])
    assert x.max() < 32
    chained = law.next_token(x).gather(2, x[:, :, None]).log().sum((1, 2))
    np.testing.assert_allclose(law.log_prob(x).numpy(), chained.numpy(), rtol=1e-10)
    np.testing.assert_allclose(law.log_prob(free).numpy(), 0, atol=1e-10)


@pytest.mark.parametrize(
    "change, told",
    [
        ({"initial": torch.tensor([1.0, 0.0])}, "must be positive"),
        ({"initial": torch.tensor([0.5, 0.4])}, "initial must hold rows"),
        ({"transition": torch.eye(3)}, r"transition must be \(2, 2\)"),
        ({"emission": torch.tensor([[1.0, 0.0], [1.0, 0.0]])}, "every token emitted"),
    ],
)
def test_what_is_no_law_is_refused(change, told):
    half = torch.full((2, 2), 0.5)
    parts = {"initial": half[0], "transition": half, "emission": half} | change
    with pytest.raises(ValueError, match=told):
        HiddenMarkov(**parts)
