"""Sums of energies: what they pass on, what they refuse. Their laws: test_laws.py."""

import copy
import pickle

import numpy as np
import pytest
import torch
from enumeration import TinyDenoiser
from tiny_models import TableAR, table_denoiser

from edlm_engine import (
    ARResidualEnergy,
    Engine,
    GenerationConfig,
    RewardEnergy,
    SumEnergy,
    TokenCountEnergy,
    tilted,
)

MASK = 2
X0 = torch.tensor([[[0, 1, 3], [0, 0, 3]], [[1, 3, 3], [1, 3, 0]], [[3, 3, 3], [0, 3, 3]]])
XT = torch.tensor([[0, MASK, 3], [1, 3, MASK], [MASK, 3, 3]])
GIVEN = X0, XT, torch.randn(3, 2, generator=torch.Generator().manual_seed(0)), torch.rand(3)


def first_token(x0, xt, log_q, t):
    return x0[:, :, 0].float()


def test_weights_and_flat_parts():
    counts, ar = TokenCountEnergy({3: 1}, penalty=2.0), ARResidualEnergy(TableAR(4, 3))
    total = first_token + 2 * (counts + 0.5 * (ar * 3 + first_token))
    assert total.parts == (first_token, counts, ar, first_token)
    assert total.weights == (1, 2, 3, 1)
    wanted = 2 * X0[:, :, 0] + 2 * counts(*GIVEN) + 3 * ar(*GIVEN).double()
    torch.testing.assert_close(total(*GIVEN), wanted.float())
    assert total(*GIVEN).dtype == torch.float32
    assert sum([counts, ar]).parts == (counts, ar)
    assert torch.equal(total.energy(*GIVEN), total(*GIVEN))


def test_what_the_engine_asks_of_an_energy_is_passed_on():
    early, late = ARResidualEnergy(TableAR(4, 5)), ARResidualEnergy(TableAR(4, 3, first_position=1))
    counts = TokenCountEnergy({3: 1})
    for attribute in ("first_position", "length", "vocab_size"):
        assert not hasattr(counts + first_token, attribute)
    both = counts + late
    assert (both.first_position, both.length, both.vocab_size) == (1, 3, 4)
    assert (early + ARResidualEnergy(TableAR(4, 4))).length == 4
    with pytest.raises(ValueError, match=r"must agree in first_position, got \[0, 1\]"):
        early + late
    assert not both.needs_grad
    late.needs_grad = True
    assert both.needs_grad
    assert pickle.loads(pickle.dumps(both)).weights == copy.deepcopy(both).weights == (1, 1)


def test_masked_reaches_the_parts():
    seen = []

    def with_masked(x0, xt, log_q, t, masked):
        seen.append(masked)
        return first_token(x0, xt, log_q, t)

    tiny = TinyDenoiser(vocab=4, length=3, mask_id=MASK)
    engine = Engine(table_denoiser(tiny), TokenCountEnergy({3: 1}) + with_masked)
    engine.generate(3, config=GenerationConfig(steps=2, num_candidates=2))
    assert seen and all(isinstance(each, np.ndarray) for each in seen)
    assert seen[0].shape == (3, 3) and seen[0].all()


@pytest.mark.parametrize("correction", ["joint", "local", "smc"])
def test_a_weight_is_a_temperature_under_every_correction(correction):
    """Which particles also need to know how many times log q is in the sum."""
    tiny = TinyDenoiser(vocab=4, length=3, mask_id=MASK)
    ar = ARResidualEnergy(TableAR(4, 3, forbidden_id=MASK))

    def generate(energy, temperature):
        config = GenerationConfig(
            steps=3, num_candidates=3, correction=correction, energy_temperature=temperature
        )
        return Engine(table_denoiser(tiny), energy).generate(50, config=config)

    once, half = generate(ar, 2.0), generate(0.5 * ar, 1.0)
    assert torch.equal(once.sequences, half.sequences)
    torch.testing.assert_close(once.log_z, half.log_z, equal_nan=True)
    if correction == "smc":
        torch.testing.assert_close(once.log_weights, half.log_weights)
    assert (ar + 0.25 * ar + TokenCountEnergy({3: 1})).residual == 1.25


def test_tilted():
    counts, model = TokenCountEnergy({3: 1}), TableAR(4, 3)
    assert tilted(counts).parts == (counts,)
    residual, other = tilted(counts, model=model).parts
    assert other is counts and residual.model is model and not residual.carry_over
    with pytest.raises(ValueError, match="energies must be one at least, got none"):
        tilted()


def test_each_part_fits_the_denoiser():
    tiny = TinyDenoiser(vocab=4, length=3, mask_id=3)
    counts = TokenCountEnergy({0: 1})
    Engine(table_denoiser(tiny), counts + ARResidualEnergy(TableAR(3, 3)))  # without the last mask
    with pytest.raises(ValueError, match="vocabulary of 4 or 3 tokens, got one of 5"):
        Engine(
            table_denoiser(tiny),
            counts + ARResidualEnergy(TableAR(3, 3)) + ARResidualEnergy(TableAR(5, 3)),
        )
    short = Engine(table_denoiser(tiny), counts + ARResidualEnergy(TableAR(4, 2)))
    with pytest.raises(ValueError, match="length must be <= 2"):
        short.generate()


def test_a_part_that_returns_something_else_is_named():
    def one_short(x0, xt, log_q, t):
        return log_q[:, :1]

    def nothing(x0, xt, log_q, t):
        return None

    counts = TokenCountEnergy({3: 1})
    with pytest.raises(ValueError, match=r"energy of one_short must have shape \[3, 2\]"):
        (counts + one_short)(*GIVEN)
    with pytest.raises(TypeError, match="energy of nothing must be a tensor, got NoneType"):
        (counts + nothing)(*GIVEN)


@pytest.mark.parametrize(
    ("weights", "error", "message"),
    [
        ((1.0,), ValueError, "weights must be 2, one per energy, got 1"),
        ((1.0, 0), ValueError, "weights must be finite and not 0, got 0"),
        ((1.0, float("nan")), ValueError, "weights must be finite and not 0, got nan"),
        ((1.0, "2"), TypeError, "weights must be numbers, got '2'"),
    ],
)
def test_bad_weights(weights, error, message):
    with pytest.raises(error, match=message):
        SumEnergy(first_token, first_token, weights=weights)


def test_what_is_no_energy():
    with pytest.raises(TypeError, match="energies must have a method energy, or be callable: 3"):
        TokenCountEnergy({3: 1}) + 3
    with pytest.raises(TypeError, match="weights must be numbers"):
        TokenCountEnergy({3: 1}) * first_token


def test_an_energy_without_files_is_not_dropped_silently(tmp_path):
    engine = Engine.from_pretrained()
    engine.energy = engine.energy + RewardEnergy(lambda tokens: tokens[:, 0])
    with pytest.raises(ValueError, match="energy has no files to write, a SumEnergy"):
        engine.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
