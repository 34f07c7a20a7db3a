"""Distances of samples from laws that are known: estimates, errors and floors."""

import numpy as np
import pytest
import torch
from scipy import stats

from edlm_engine.evaluation.distances import (
    kullback_leibler,
    largest_step,
    numbers_of,
    pair_shares,
    share_variation,
    total_variation,
)
from edlm_engine.evaluation.oracle import HiddenMarkov

LAW = torch.tensor([0.4, 0.3, 0.15, 0.1, 0.05, 0.0], dtype=torch.float64)
OTHER = torch.tensor([0.3, 0.25, 0.2, 0.05, 0.2, 0.0], dtype=torch.float64)
ESTIMATES = [total_variation, kullback_leibler]


def repeated(estimate, law, n, times=400):
    random = np.random.default_rng(0)
    draws = random.choice(len(law), size=(times, n), p=law.numpy())
    return [estimate(torch.from_numpy(codes), LAW) for codes in draws]


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_floors_are_the_mean_of_exact_draws(estimate):
    found = repeated(estimate, LAW, 400)
    values = np.array([distance.value for distance in found])
    floor = found[0].floor
    assert abs(values.mean() - floor) < 4 * values.std() / np.sqrt(len(values)) + 0.02 * floor
    assert floor > 0


@pytest.mark.parametrize("estimate", ESTIMATES)
def test_estimates_and_errors_of_another_law(estimate):
    found = repeated(estimate, OTHER, 4000)
    values = np.array([distance.value for distance in found])
    divergence = stats.entropy(OTHER[:5].numpy(), LAW[:5].numpy())
    exact = {"total_variation": 0.2, "kullback_leibler": divergence}[estimate.__name__]
    assert values.mean() == pytest.approx(exact, abs=0.002)
    errors = np.mean([distance.stderr for distance in found])
    assert errors == pytest.approx(values.std(), rel=0.15)
    assert found[0].excess == found[0].value - found[0].floor


def test_impossible_samples_are_infinitely_far():
    codes = torch.tensor([0, 1, 5, 0])
    assert kullback_leibler(codes, LAW).value == float("inf")
    assert total_variation(codes, LAW).value == pytest.approx(0.1 + 0.25)


def test_numbers_are_those_of_the_enumeration():
    law = HiddenMarkov.random(2, 3)
    canvas = torch.tensor([3, 1, 3, 3])
    whole, _ = law.enumerate(canvas)
    assert numbers_of(whole, canvas == 3, 3).tolist() == list(range(27))


def test_pairs_are_counted_where_one_token_is():
    tokens = torch.tensor([[0, 1, 1, 0], [1, 1, 0, 0]])
    counted = torch.tensor([[False, False, True, False], [True, True, True, True]])
    pairs = pair_shares(tokens, counted, 1, 2)
    np.testing.assert_allclose(pairs.numpy(), [[0, 0, 0.5, 0.5], [1 / 3, 0, 1 / 3, 1 / 3]])
    alone = pair_shares(tokens, counted, 0, 2)
    np.testing.assert_allclose(alone.numpy(), [[0, 0, 0, 1], [0.5, 0, 0, 0.5]])
    distance = share_variation(pairs, torch.tensor([0.25, 0.25, 0.25, 0.25], dtype=torch.float64))
    assert distance.value == pytest.approx(np.abs(pairs.mean(0).numpy() - 0.25).sum() / 2)
    assert distance.stderr > 0


def test_the_largest_step_is_that_of_scipy():
    random = np.random.default_rng(1)
    one, two = random.normal(size=50), np.round(random.normal(0.5, size=70), 1)
    found = largest_step(torch.from_numpy(one), torch.from_numpy(two))
    assert found == pytest.approx(stats.ks_2samp(one, two).statistic)
