"""The reveal plan against a slow restatement, its statistics, and its independence of the batch."""

import numpy as np
import pytest
import torch
from op_cases import P_VALUE
from scipy import stats

from edlm_engine import LogLinearSchedule, ops, reference
from edlm_engine.sampling.plan import REVEAL, plan_reveals

SCHEDULE = LogLinearSchedule(eps=0.1)
TENSORS = ("rows", "numbers", "times", "sigmas", "draws", "reveals", "energy_index")


def seeds(batch, seed=0):
    return ops.stream_keys(seed, torch.arange(batch))


def uniforms(seeds, length):
    keys = reference.stream_keys(seeds, REVEAL)
    return reference.uniform(reference.stream_keys(keys[:, None], torch.arange(length))).numpy()


def some_masked(batch, length):
    """Different numbers of free positions per sequence, the last sequence with none."""
    generator = torch.Generator().manual_seed(1)
    masked = torch.rand(batch, length, generator=generator) < 0.6
    masked[-1] = False
    return masked


@pytest.mark.parametrize("steps", [1, 4, 50, None])
def test_every_step_matches_the_definition(steps):
    batch, length = 5, 9
    masked = some_masked(batch, length)
    plan = plan_reveals(seeds(batch), masked, SCHEDULE, steps, (0.3, 0.8))
    u = uniforms(seeds(batch), length)
    hidden = masked.numpy().copy()
    times = SCHEDULE.times(steps).numpy() if steps else None
    for j in range(plan.iterations):
        (step,) = plan.steps(j)
        drawn, revealed = set(step.draws.tolist()), set(step.reveals.tolist())
        assert sorted(drawn) == step.draws.tolist() and sorted(revealed) == step.reveals.tolist()
        for i, (b, number, t) in enumerate(
            zip(step.rows.tolist(), step.numbers.tolist(), step.times.tolist(), strict=True)
        ):
            places = np.flatnonzero(hidden[b])
            if steps is None:
                now = places[np.argmax(u[b, places])][None]
                assert t == u[b, now[0]] and number == j + 1
            else:
                end = 0 if number == steps + 1 else times[number]
                assert t == times[number - 1]
                now = places[u[b, places] >= end]
                assert (u[b, now] < t).all() and len(now) > 0
            energy = i < len(step.energy_index)
            assert energy == (0.3 <= t <= 0.8)
            assert {x - i * length for x in revealed if x // length == i} == set(now)
            wanted = places if energy else now
            assert {x - i * length for x in drawn if x // length == i} == set(wanted)
            hidden[b, now] = False
        energies = len(step.energy_index)
        assert step.energy_draws == sum(x < energies * length for x in drawn)
        assert step.energy_reveals == sum(x < energies * length for x in revealed)
    assert not hidden.any()


def test_counts_and_columns():
    plan = plan_reveals(seeds(6), some_masked(6, 12), SCHEDULE, 8, (0.3, 0.8))
    nfe, columns = np.zeros(6, int), [[] for _ in range(6)]
    for j in range(plan.iterations):
        (step,) = plan.steps(j)
        nfe[step.rows] += 1
        for b, column in zip(step.rows.tolist(), step.energy_index.tolist(), strict=False):
            columns[b].append(column)
    assert np.array_equal(nfe, plan.nfe) and plan.nfe[-1] == 0 and plan.nfe.max() == plan.iterations
    assert columns == [list(range(n)) for n in plan.energy_steps]


def test_one_by_one_holds_the_same_steps():
    plan = plan_reveals(seeds(5), some_masked(5, 9), SCHEDULE, 4, (0.3, 0.8))
    for j in range(plan.iterations):
        (whole,) = plan.steps(j)
        parts = list(plan.steps(j, one_by_one=True))
        assert [len(part.rows) for part in parts] == [1] * len(whole.rows)
        for name in ("rows", "numbers", "times", "sigmas", "energy_index"):
            joined = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(joined, getattr(whole, name))
        draws = torch.cat([part.draws + 9 * i for i, part in enumerate(parts)])
        assert torch.equal(draws, whole.draws)


@pytest.mark.parametrize("steps", [4, None])
def test_a_step_knows_its_noise_and_where_the_energy_finds_masks(steps):
    plan = plan_reveals(seeds(5), some_masked(5, 9), SCHEDULE, steps, (0.3, 0.8))
    for j in range(plan.iterations):
        (step,) = plan.steps(j)
        assert torch.equal(step.sigmas, SCHEDULE.sigma(step.times))
        assert step.masked.shape == (len(step.energy_index), 9)
        masked = np.flatnonzero(step.masked)
        assert np.array_equal(masked, step.draws[: step.energy_draws].numpy())


def test_a_step_travels_in_one_copy(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: (pinned.append(x), x)[1])
    plan = plan_reveals(seeds(5), some_masked(5, 9), SCHEDULE, 4, (0.3, 0.8))
    for j in range(plan.iterations):
        (step,) = plan.steps(j)
        moved = step.to(torch.device("meta"))
        assert len(pinned) == j + 1 and moved.masked is step.masked
        start = 0
        for name in TENSORS:
            ours, theirs = getattr(moved, name), getattr(step, name)
            assert ours.is_meta and ours.dtype == theirs.dtype and ours.shape == theirs.shape
            assert ours.storage_offset() == start
            sent = pinned[-1][start : start + len(theirs)].view(theirs.dtype)
            assert torch.equal(sent, theirs)
            start += len(theirs)
        assert start == len(pinned[-1])
        here = step.to(torch.device("cpu"))
        assert all(getattr(here, name) is getattr(step, name) for name in TENSORS)


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
    in_fill = 0
    for j in range(greedy.iterations):
        (step,) = greedy.steps(j)
        of_fill = (step.numbers == 4)[step.draws // 8].int()
        assert step.fill_draws == of_fill.sum() and (of_fill.diff() >= 0).all()
        in_fill += step.fill_draws
    assert in_fill == (scored.revealed_in == 4).sum()


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
