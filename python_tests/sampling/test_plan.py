"""The reveal plan: its statistics, and its independence of the batch."""

import numpy as np
import pytest
import torch
from op_cases import P_VALUE
from scipy import stats

from edlm_engine import LogLinearSchedule, ops
from edlm_engine.sampling.plan import plan_reveals

SCHEDULE = LogLinearSchedule(eps=0.1)


def seeds(batch, seed=0):
    return ops.stream_keys(seed, torch.arange(batch))


@pytest.mark.parametrize("steps", [6, None])
def test_a_sequence_plans_the_same_in_any_batch(steps):
    masked = torch.ones(4, 20, dtype=torch.bool)
    together = plan_reveals(seeds(4), masked, SCHEDULE, steps)
    for b in (0, 3):
        alone = plan_reveals(seeds(4)[b : b + 1], masked[:1], SCHEDULE, steps)
        assert np.array_equal(alone.revealed_in[0], together.revealed_in[b])
        n = alone.nfe[0]
        assert np.array_equal(alone.times[0, :n], together.times[b, :n])


def test_no_energy_means_no_energy_step():
    plan = plan_reveals(seeds(3), torch.ones(3, 8, dtype=torch.bool), SCHEDULE, 5, None)
    assert plan.energy_steps.sum() == 0


def test_the_last_fill_with_and_without_energy():
    masked = torch.ones(40, 8, dtype=torch.bool)
    times = (0.0, 1.0)
    scored = plan_reveals(seeds(40), masked, SCHEDULE, 3, times)
    greedy = plan_reveals(seeds(40), masked, SCHEDULE, 3, times, energy_at_fill=False)
    fills = scored.numbers == 4
    assert fills.any() and scored.uses_energy[fills].all() and not greedy.uses_energy[fills].any()
    assert (greedy.uses_energy == scored.uses_energy)[~fills].all()
    assert np.allclose(scored.times[fills], 0.1)


def test_evaluations_as_expected():
    """N (1 - (1 - 1/N)^L) per sequence, not more for a larger batch."""
    steps = length = 64
    schedule = LogLinearSchedule()
    expected = steps * (1 - (1 - 1 / steps) ** length)
    for batch in (50, 2000):
        plan = plan_reveals(seeds(batch, 3), torch.ones(batch, length).bool(), schedule, steps)
        error = plan.nfe.std() / batch**0.5
        assert abs(plan.nfe.mean() - expected) < 4 * error


def test_reveals_are_uniform_over_steps():
    plan = plan_reveals(seeds(2000), torch.ones(2000, 16).bool(), LogLinearSchedule(eps=0.2), 4)
    counts = np.bincount(plan.revealed_in.ravel(), minlength=6)
    assert counts[0] == 0
    expected = np.array([0.2] * 5) * counts.sum()
    assert stats.chisquare(counts[1:], expected).pvalue > P_VALUE


def test_continuous_order_is_uniform():
    plan = plan_reveals(seeds(12_000), torch.ones(12_000, 3).bool(), SCHEDULE, None)
    _, counts = np.unique(plan.revealed_in, axis=0, return_counts=True)
    assert len(counts) == 6 and stats.chisquare(counts).pvalue > P_VALUE
    assert (np.diff(plan.times, axis=1) < 0).all()
    assert stats.kstest(plan.times[:, 0], "beta", (3, 1)).pvalue > P_VALUE
