"""The bounds of held-out text against full enumeration of tiny models."""

import math
from itertools import product

import numpy as np
import pytest
import torch
from enumeration import TinyDenoiser, ancestral, first_hitting, step_distribution
from reveal_plans import LENGTH, MASK, SCHEDULE, exact_bound, plans, sigma
from tiny_models import HeadDenoiser, TableAR, table_denoiser

from edlm_engine import (
    ARResidualEnergy,
    CallableDenoiser,
    Engine,
    GenerationConfig,
)
from edlm_engine.evaluation.held_out import held_out_likelihood
from edlm_engine.evaluation.likelihood import selection_gain

pytestmark = pytest.mark.usefixtures("single_thread")

X0 = (0, 2, 2)


@pytest.fixture(scope="module")
def tiny():
    return TinyDenoiser(vocab=3, length=LENGTH, mask_id=MASK)


@pytest.fixture(scope="module")
def ar():
    return TableAR(3, LENGTH, forbidden_id=MASK)


def copies(x0=X0, count=800):
    return torch.tensor([x0]).repeat(count, 1)


def exact_law(tiny, energy, config):
    start = (MASK,) * LENGTH
    if config.steps is None:
        return first_hitting(tiny, start, energy, config.num_candidates)
    times, window = SCHEDULE.times(config.steps).tolist(), config.energy_times
    return ancestral(
        tiny, start, times, sigma, energy, config.num_candidates, window, config.temperature
    )


def close(rate, nats):
    assert abs(rate.nats_per_token * LENGTH - nats) < 4 * rate.stderr * LENGTH
    assert rate.stderr * LENGTH < 0.05  # or the line above says nothing


@pytest.mark.parametrize("kind", [table_denoiser, HeadDenoiser])
@pytest.mark.parametrize("steps", [None, 3])
def test_the_diffusion_bound(tiny, kind, steps):
    config = GenerationConfig(steps=steps, num_candidates=1, temperature=0.7 if steps else 1.0)
    engine = Engine(kind(tiny), schedule=SCHEDULE)
    found = held_out_likelihood(engine, copies(), config=config, draws=3)
    close(found.denoiser, exact_bound(tiny, None, config, X0))
    assert found.sampler == {} and found.paper_lower is None and found.ar is None
    law = exact_law(tiny, None, config)
    if steps is None:
        assert found.denoiser.nats_per_token * LENGTH > -math.log(law[X0])


def test_a_denoiser_that_sees_the_time():
    tilted = TinyDenoiser(vocab=3, length=LENGTH, mask_id=MASK, tilt=0.5)
    config = GenerationConfig(steps=4, num_candidates=1)
    engine = Engine(table_denoiser(tilted), schedule=SCHEDULE)
    close(
        held_out_likelihood(engine, copies(), config=config).denoiser,
        exact_bound(tilted, None, config, X0),
    )


@pytest.mark.parametrize(
    "config",
    [
        GenerationConfig(steps=None, num_candidates=4),
        GenerationConfig(steps=3, num_candidates=3),
        GenerationConfig(steps=4, num_candidates=2, window=(0.4, 0.8)),
    ],
    ids=["continuous", "steps", "window"],
)
def test_the_samplers_bound_is_one_and_tightens(tiny, ar, config):
    energy = ar.residual(MASK)
    engine = Engine(table_denoiser(tiny), ARResidualEnergy(ar), schedule=SCHEDULE)
    exact, truth = (
        exact_bound(tiny, energy, config, X0),
        -math.log(exact_law(tiny, energy, config)[X0]),
    )
    assert truth < exact
    gaps = {}
    for pool in (3, 32):
        found = held_out_likelihood(engine, copies(), config=config, draws=3, pool=pool)
        rate = found.sampler[config.num_candidates]
        gaps[pool] = rate.nats_per_token * LENGTH - exact
        slack = 4 * rate.stderr * LENGTH
        assert rate.nats_per_token * LENGTH > truth - slack and gaps[pool] > -slack
        assert rate.nats_per_token == pytest.approx(
            found.denoiser.nats_per_token - found.gain[config.num_candidates].nats_per_token
        )
    assert abs(gaps[32]) < 0.06 and gaps[3] > gaps[32]


def test_more_candidates_bring_text_of_the_ar_model_closer(tiny, ar):
    """On average over what the AR model itself says, with every power of two on the way."""
    texts = [x for x in product((0, 2), repeat=LENGTH)]
    chances = np.array([math.exp(ar.log_probs(x).sum()) for x in texts])
    random = np.random.default_rng(0)
    drawn = torch.tensor(texts)[random.choice(len(texts), 500, p=chances / chances.sum())]
    engine = Engine(table_denoiser(tiny), ARResidualEnergy(ar))
    config = GenerationConfig(steps=None, num_candidates=6)
    found = held_out_likelihood(engine, drawn, config=config, pool=24)
    assert list(found.gain) == [2, 4, 6]
    gains = [found.gain[k].nats_per_token for k in (2, 4, 6)]
    assert 0 < gains[0] < gains[1] < gains[2]


def exact_paper(tiny, energy, x0=X0):
    """The paper's formula: the joint of all masked positions, weighted by 1 / their number."""
    total = 0.0
    for chance, path in plans(None):
        for _, masked, _ in path:
            xt = tuple(MASK if p in masked else v for p, v in enumerate(x0))
            probs = tiny.probs(xt, 0.0)
            log_q = {
                x: np.where(np.array(xt) == MASK, np.log(probs[range(LENGTH), x]), 0.0)
                for x in step_distribution(tiny, xt, 0.0, 0.0, None, 1)
            }
            weight = {x: math.exp(q.sum() - energy(x, xt, q, 0.0)) for x, q in log_q.items()}
            total -= chance / len(masked) * math.log(weight[tuple(x0)] / sum(weight.values()))
    return total


@pytest.mark.parametrize("carry_over", [False, True])
def test_the_papers_estimate_lies_between_its_sides_which_close(tiny, ar, carry_over):
    engine = Engine(table_denoiser(tiny), ARResidualEnergy(ar, carry_over))
    exact = exact_paper(tiny, ar.residual(MASK, carry_over))
    config = GenerationConfig(steps=None, num_candidates=2)
    widths = []
    for pool in (16, 64):
        found = held_out_likelihood(engine, copies(count=400), config=config, draws=3, pool=pool)
        lower, upper = (
            getattr(found, f"paper_{side}").nats_per_token * LENGTH for side in ("lower", "upper")
        )
        error = found.paper_lower.stderr * LENGTH
        assert lower < exact + 4 * error and upper > exact - 4 * error
        assert abs(found.log_z_width) > 0 and 1 <= found.ess <= pool
        widths.append(upper - lower)
    assert widths[0] > 2 * widths[1] > 0
    if carry_over:  # Z = 1, and the formula is the AR model's own likelihood: an identity
        assert exact == pytest.approx(-ar.log_probs(X0).sum())
        assert found.ar.nats_per_token * LENGTH == pytest.approx(exact, rel=1e-5)


def test_the_papers_estimate_is_no_bound_where_the_samplers_is():
    """Tied tokens: three equally likely texts, so no bound may fall below log 3."""
    length, texts = 4, torch.tensor([[v] * 4 for v in (0, 1, 2)]).repeat(20, 1)
    denoiser = CallableDenoiser(
        lambda xt, sigma: torch.zeros(*xt.shape, 4), mask_id=3, vocab_size=4, length=length
    )

    def tied(x0, xt, log_q, t):
        return torch.where((x0 == x0[..., :1]).all(-1), 0.0, torch.inf) + log_q * 0

    config = GenerationConfig(steps=None, num_candidates=2)
    found = held_out_likelihood(Engine(denoiser, tied), texts, config=config, pool=300, draws=8)
    entropy = math.log(3)
    paper = found.paper_upper.nats_per_token * length
    assert paper == pytest.approx(entropy / length, rel=0.1)
    assert found.sampler[2].nats_per_token * length > entropy


def test_the_gain_is_an_unbiased_estimate_inside_its_logarithm():
    """Two free weights and one fixed, every value with its chance, by hand."""
    fixed, free = (torch.tensor(w, dtype=torch.float64).log() for w in ([3.0], [1.0, 5.0]))
    shares = [3 / ((3 + w) / 2) for w in (1, 5)]
    assert selection_gain(fixed, free, 2).item() == pytest.approx(math.log(sum(shares) / 2))
    assert selection_gain(fixed, free, 1).item() == 0
    whole = 3 / ((3 + 1 + 5) / 3)
    assert selection_gain(fixed, free, 3).item() == pytest.approx(math.log(whole))
    none = torch.tensor([-torch.inf])
    assert selection_gain(none, none, 2).item() == -torch.inf
    assert selection_gain(fixed, none, 2).item() == pytest.approx(math.log(2))
    assert selection_gain(torch.randn(5, 2), torch.randn(5, 3), 4).shape == (5,)
    with pytest.raises(ValueError, match=r"num_candidates must be in \[1, 3\] for 2 free"):
        selection_gain(fixed, free, 4)


def test_a_seed_repeats_in_any_batch(tiny, ar):
    engine = Engine(table_denoiser(tiny), ARResidualEnergy(ar))
    given = {"windows": copies(count=7), "draws": 2, "pool": 8}
    one, other = (held_out_likelihood(engine, batch_size=b, **given).to_json() for b in (3, 14))
    for side in ("paper_lower", "denoiser"):
        assert one[side] == pytest.approx(other[side], rel=1e-6)
    assert held_out_likelihood(engine, seed=1, **given).denoiser != one["denoiser"]


def test_units(tiny):
    found = held_out_likelihood(
        Engine(table_denoiser(tiny)), copies(), characters_per_token=2.0
    ).to_json()
    rate = found["denoiser"]
    assert rate["perplexity"] == pytest.approx(math.exp(rate["nats_per_token"]))
    assert rate["bits_per_token"] == pytest.approx(rate["nats_per_token"] / math.log(2))
    assert rate["bits_per_character"] == pytest.approx(rate["bits_per_token"] / 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"windows": torch.zeros(2, 3)}, "windows must be int64 with shape"),
        (
            {"windows": torch.zeros(1, 3, dtype=torch.int64)},
            "windows must be two at least, of 1 to 3",
        ),
        ({"windows": torch.tensor([[0, 1, 2]] * 2)}, "other than the mask 1, got 1"),
        ({"windows": torch.tensor([[0, 0, 3]] * 2)}, r"tokens in \[0, 3\)"),
        ({"draws": 0}, "draws must be >= 1, got 0"),
        ({"pool": 6}, "pool must be >= 7 for 8 candidates, got 6"),
        ({"config": GenerationConfig(top_p=0.9)}, "top_p must be 1.0 for a bound"),
        ({"config": GenerationConfig(final="argmax")}, "final must be 'sample' for a bound"),
        ({"config": GenerationConfig(length=2)}, "length must be that of windows, 3, got 2"),
    ],
)
def test_what_has_no_bound_is_named(tiny, ar, options, message):
    engine = Engine(table_denoiser(tiny), ARResidualEnergy(ar))
    with pytest.raises(ValueError, match=message):
        held_out_likelihood(engine, **{"windows": copies(count=2), **options})
