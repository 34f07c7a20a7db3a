"""Whole sequences of the engine against exact enumeration: chi-square at fixed seeds."""

import numpy as np
import pytest
import torch
from enumeration import TinyDenoiser, ancestral, first_hitting, p_value
from tiny_models import HeadDenoiser, TableAR, table_denoiser

from edlm_engine import ARResidualEnergy, Engine, GenerationConfig, LogLinearSchedule

pytestmark = pytest.mark.usefixtures("single_thread")

MASK = 1  # in the middle of the vocabulary: nothing may rely on its being the last token
# A late end, so that the fill after t_N has much to do.
SCHEDULE = LogLinearSchedule(eps=0.2)
ACCEPT = 1e-3


def sample(
    engine: Engine, config: GenerationConfig, canvas=None, calls=6, batch=5000
) -> np.ndarray:
    drawn = [
        engine.generate(batch, config=config, seed=seed, canvas=canvas).sequences
        for seed in range(calls)
    ]
    return torch.cat(drawn).numpy()


def exact(tiny: TinyDenoiser, config: GenerationConfig, energy=None, start=None) -> dict:
    times = SCHEDULE.times(config.steps).tolist()
    return ancestral(
        tiny,
        start or (MASK,) * tiny.length,
        times,
        lambda t: float(SCHEDULE.sigma(torch.tensor(t, dtype=torch.float64))),
        energy,
        config.num_candidates,
        config.energy_times or (2.0, 2.0),
        config.temperature,
    )


def both(tiny, config, ar, carry_over=False):
    engine = Engine(table_denoiser(tiny), ARResidualEnergy(ar, carry_over), schedule=SCHEDULE)
    return sample(engine, config), exact(tiny, config, ar.residual(MASK, carry_over))


@pytest.fixture(scope="module")
def tiny():
    return TinyDenoiser(vocab=4, length=3, mask_id=MASK, tilt=0.3)


@pytest.fixture(scope="module")
def binary():
    return TinyDenoiser(vocab=3, length=3, mask_id=MASK, tilt=0.3)


@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_mdlm_alone(tiny, temperature):
    config = GenerationConfig(steps=3, num_candidates=1, temperature=temperature)
    drawn = sample(Engine(table_denoiser(tiny), schedule=SCHEDULE), config)
    assert p_value(drawn, exact(tiny, config)) > ACCEPT


def test_an_energy_with_one_candidate_changes_nothing(tiny):
    config = GenerationConfig(steps=3, num_candidates=1)
    plain = Engine(table_denoiser(tiny)).generate(50, config=config)
    scored = Engine(table_denoiser(tiny), ARResidualEnergy(TableAR(4, 3))).generate(
        50, config=config
    )
    assert torch.equal(plain.sequences, scored.sequences)
    assert scored.ess.shape == (50, 0)


def test_ar_energy_with_two_candidates(tiny):
    drawn, truth = both(tiny, GenerationConfig(steps=3, num_candidates=2), TableAR(4, 3))
    assert p_value(drawn, truth) > ACCEPT


def test_ar_energy_with_four_candidates(binary):
    drawn, truth = both(binary, GenerationConfig(steps=3, num_candidates=4), TableAR(3, 3))
    assert p_value(drawn, truth) > ACCEPT


def test_carry_over(binary):
    config = GenerationConfig(steps=3, num_candidates=4)
    ar = TableAR(3, 3)
    drawn, truth = both(binary, config, ar, carry_over=True)
    assert p_value(drawn, truth) > ACCEPT
    assert p_value(drawn, exact(binary, config, ar.residual(MASK))) < 1e-6


def test_ar_energy_that_cannot_score_position_0(binary):
    config = GenerationConfig(steps=3, num_candidates=4)
    drawn, truth = both(binary, config, TableAR(3, 3, first_position=1, forbidden_id=MASK))
    assert p_value(drawn, truth) > ACCEPT


@pytest.mark.parametrize("window", [0.4, (0.4, 0.8)])
def test_window_inside_the_unit_interval(tiny, window):
    config = GenerationConfig(steps=4, num_candidates=2, window=window)
    drawn, truth = both(tiny, config, TableAR(4, 3))
    assert p_value(drawn, truth) > ACCEPT


def test_energy_temperature(tiny):
    config = GenerationConfig(steps=3, num_candidates=2, energy_temperature=0.5)
    ar = TableAR(4, 3)
    sharp = ar.residual(MASK)
    engine = Engine(table_denoiser(tiny), ARResidualEnergy(ar), schedule=SCHEDULE)
    truth = exact(tiny, config, lambda *given: sharp(*given) / 0.5)
    assert p_value(sample(engine, config), truth) > ACCEPT


def test_any_callable_with_time_and_log_q(tiny):
    """The energy sees x0, xt, log_q and t: each must be the right sequence's own."""

    def energy(x0, xt, log_q, t):
        agree = (x0[:, :, 0] == x0[:, :, 2]).float()
        hidden = (xt == MASK).sum(dim=1, keepdim=True)
        return 3 * agree * t[:, None] + 0.5 * log_q + 0.4 * hidden * x0[:, :, 1]

    def by_hand(x0, xt, log_q, t):
        return 3 * (x0[0] == x0[2]) * t + 0.5 * log_q.sum() + 0.4 * xt.count(MASK) * x0[1]

    config = GenerationConfig(steps=3, num_candidates=2)
    drawn = sample(Engine(table_denoiser(tiny), energy, schedule=SCHEDULE), config)
    assert p_value(drawn, exact(tiny, config, by_hand)) > ACCEPT


def test_pinned_tokens(tiny):
    """Three sequences with different pinned tokens in one batch, each against its own law."""
    config = GenerationConfig(steps=3, num_candidates=2)
    ar = TableAR(4, 3)
    engine = Engine(table_denoiser(tiny), ARResidualEnergy(ar), schedule=SCHEDULE)
    starts = [(MASK, 2, MASK), (0, MASK, MASK), (MASK, MASK, MASK)]
    drawn = sample(engine, config, torch.tensor(starts).repeat(5000, 1), calls=2, batch=15_000)
    for row, start in enumerate(starts):
        truth = exact(tiny, config, ar.residual(MASK), start)
        assert p_value(drawn[row::3], truth) > ACCEPT


def test_hidden_and_head(tiny):
    timeless = TinyDenoiser(vocab=4, length=3, mask_id=MASK)
    config = GenerationConfig(steps=3, num_candidates=2)
    ar = TableAR(4, 3)
    engine = Engine(HeadDenoiser(timeless), ARResidualEnergy(ar), schedule=SCHEDULE)
    truth = exact(timeless, config, ar.residual(MASK))
    assert p_value(sample(engine, config, calls=3), truth) > ACCEPT


@pytest.mark.parametrize("low", [0.0, 0.5])
def test_continuous_time(low):
    timeless = TinyDenoiser(vocab=4, length=3, mask_id=MASK)
    config = GenerationConfig(steps=None, num_candidates=2, window=(low, 1.0))
    ar = TableAR(4, 3)
    engine = Engine(table_denoiser(timeless), ARResidualEnergy(ar))
    truth = first_hitting(timeless, (MASK,) * 3, ar.residual(MASK), 2, low)
    assert p_value(sample(engine, config), truth) > ACCEPT


def test_continuous_time_alone():
    timeless = TinyDenoiser(vocab=4, length=3, mask_id=MASK)
    config = GenerationConfig(steps=None, num_candidates=1)
    drawn = sample(Engine(table_denoiser(timeless)), config)
    assert p_value(drawn, first_hitting(timeless, (MASK,) * 3)) > ACCEPT


def test_a_wrong_sign_is_seen(tiny):
    """The test that the tests can fail: high energy made likely, as the released code has it."""
    config = GenerationConfig(steps=3, num_candidates=2)
    ar = TableAR(4, 3)
    right = ARResidualEnergy(ar)
    flipped = Engine(table_denoiser(tiny), lambda *given: -right(*given), schedule=SCHEDULE)
    truth = exact(tiny, config, ar.residual(MASK))
    assert p_value(sample(flipped, config, calls=2), truth) < 1e-6


def test_mixed_rows_are_seen(tiny):
    """Scores handed to the wrong candidates, the released code's other fault, fail as well."""
    config = GenerationConfig(steps=3, num_candidates=2)
    ar = TableAR(4, 3)
    right = ARResidualEnergy(ar)
    mixed = Engine(table_denoiser(tiny), lambda *given: right(*given).roll(1, 0), schedule=SCHEDULE)
    truth = exact(tiny, config, ar.residual(MASK))
    assert p_value(sample(mixed, config, calls=2), truth) < 1e-6
