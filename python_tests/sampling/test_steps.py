"""The steps of a plan against a slow restatement, in blocks of any size and on a device."""

import numpy as np
import pytest
import torch

from edlm_engine import LogLinearSchedule, ops, reference
from edlm_engine.sampling import steps as steps_module
from edlm_engine.sampling.plan import plan_reveals
from edlm_engine.sampling.purposes import CANDIDATES, RESAMPLE, REVEAL
from edlm_engine.sampling.steps import Step, steps_of

SCHEDULE = LogLinearSchedule(eps=0.1)
BATCH, LENGTH = 5, 9
SEEDS = ops.stream_keys(0, torch.arange(BATCH))


def some_masked(batch=BATCH, length=LENGTH):
    """Different numbers of free positions per sequence, the last sequence with none."""
    generator = torch.Generator().manual_seed(1)
    masked = torch.rand(batch, length, generator=generator) < 0.6
    masked[-1] = False
    return masked


def plan_of(steps, energy_times=(0.3, 0.8), **options):
    return plan_reveals(SEEDS, some_masked(), SCHEDULE, steps, energy_times, **options)


def uniforms():
    keys = reference.stream_keys(SEEDS, REVEAL)
    keys = reference.stream_keys(keys[:, None], torch.arange(LENGTH))
    return reference.uniform(keys).numpy()


def of_sequence(i, places, starts):
    """Positions of sequence i among flat places, as the ops cut them."""
    mine = places[starts[i] - starts[0] : starts[i + 1] - starts[0]] - i * LENGTH
    assert ((mine >= 0) & (mine < LENGTH)).all() and (mine.diff() > 0).all()
    return mine.tolist()


def same(ours, theirs):
    for name, a, b in zip(Step._fields, ours, theirs, strict=True):
        if name.endswith("starts"):
            a, b = a - a[0], b - b[0]
        good = torch.equal(a, b) if isinstance(a, torch.Tensor) else np.array_equal(a, b)
        assert good, name
    return True


@pytest.mark.parametrize("steps", [1, 4, 50, None])
def test_every_step_matches_the_definition(steps):
    plan, u, hidden = plan_of(steps), uniforms(), some_masked().numpy()
    times = SCHEDULE.times(steps).numpy() if steps else None
    for j, iteration in enumerate(steps_of(plan, SEEDS)):
        (step,) = iteration
        rows, energies = step.rows.tolist(), len(step.times)
        assert sorted(rows) == np.flatnonzero(plan.numbers[:, j]).tolist()
        assert len(step.draw_starts) == len(rows) + 1 and len(step.reveal_starts) == energies + 1
        keys, masked = [], np.zeros((energies, LENGTH), bool)
        for i, b in enumerate(rows):
            number, t, places = int(plan.numbers[b, j]), plan.times[b, j], np.flatnonzero(hidden[b])
            if steps is None:
                now = places[np.argmax(u[b, places])][None]
                assert t == u[b, now[0]] and number == j + 1
            else:
                end = 0 if number == steps + 1 else times[number]
                assert t == times[number - 1]
                now = places[u[b, places] >= end]
                assert (u[b, now] < t).all() and len(now) > 0
            assert (i < energies) == (0.3 <= t <= 0.8)
            assert step.sigmas[i] == SCHEDULE.sigma(torch.tensor(t)).float()
            drawn = places if i < energies else now
            assert of_sequence(i, step.draws, step.draw_starts) == drawn.tolist()
            keys += [
                reference.stream_keys(SEEDS[b], CANDIDATES, number, int(position))
                for position in drawn
            ]
            if i < energies:
                assert of_sequence(i, step.reveals, step.reveal_starts) == now.tolist()
                assert step.times[i] == torch.tensor(t).float()
                assert step.choice_keys[i] == reference.stream_keys(SEEDS[b], RESAMPLE, number)
                masked[i, places] = True
            hidden[b, now] = False
        assert step.draw_keys.tolist() == [int(key) for key in keys]
        assert np.array_equal(step.masked, masked) and len(step.draws) == len(keys)
    assert not hidden.any()


def test_counts_and_columns():
    plan = plan_of(8)
    nfe, columns = np.zeros(BATCH, int), [[] for _ in range(BATCH)]
    for (step,) in steps_of(plan, SEEDS):
        nfe[step.rows] += 1
        for b, column in zip(step.rows.tolist(), step.columns.tolist(), strict=False):
            columns[b].append(column)
    assert np.array_equal(nfe, plan.nfe) and plan.nfe[-1] == 0 and plan.nfe.max() == plan.iterations
    assert columns == [list(range(n)) for n in plan.energy_steps]


@pytest.mark.parametrize("one_by_one", [False, True])
@pytest.mark.parametrize("steps", [8, None])
@pytest.mark.parametrize("positions", [1, 2 * BATCH * LENGTH, 3 * BATCH * LENGTH + 1])
def test_blocks_of_any_size_hold_the_same_steps(monkeypatch, positions, steps, one_by_one):
    plan = plan_of(steps)
    whole = list(steps_of(plan, SEEDS, one_by_one=one_by_one))
    monkeypatch.setattr(steps_module, "BLOCK_POSITIONS", positions)
    parts = list(steps_of(plan, SEEDS, one_by_one=one_by_one))
    assert len(parts) == len(whole) == plan.iterations
    for ours, theirs in zip(parts, whole, strict=True):
        assert all(same(a, b) for a, b in zip(ours, theirs, strict=True))
    some = list(steps_of(plan, SEEDS, one_by_one=one_by_one, first=1, last=3))
    assert len(some) == 2 and all(same(a, b) for a, b in zip(some[1], whole[2], strict=True))


def test_one_by_one_holds_the_same_steps():
    plan = plan_of(4)
    together, apart = steps_of(plan, SEEDS), steps_of(plan, SEEDS, one_by_one=True)
    for (whole,), parts in zip(together, apart, strict=True):
        assert [len(part.rows) for part in parts] == [1] * len(whole.rows)
        for name in ("rows", "times", "sigmas", "draw_keys", "choice_keys", "columns"):
            joined = torch.cat([getattr(part, name) for part in parts])
            assert torch.equal(joined, getattr(whole, name))
        for name in ("draws", "reveals"):
            each = [getattr(part, name) + LENGTH * i for i, part in enumerate(parts)]
            assert torch.equal(torch.cat(each), getattr(whole, name))


def test_the_last_fill_comes_last():
    plan = plan_of(3, (0.0, 0.5), energy_at_fill=False)
    in_fill = 0
    for j, (step,) in enumerate(steps_of(plan, SEEDS)):
        fills = torch.from_numpy(plan.numbers[step.rows, j] == 4)
        of_fill = fills[step.draws // LENGTH].int()
        assert step.fill_draws == of_fill.sum() and (of_fill.diff() >= 0).all()
        in_fill += step.fill_draws
    assert in_fill == (plan.revealed_in == 4).sum() > 0


def test_a_block_travels_in_one_copy(monkeypatch):
    pinned = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda x: (pinned.append(x), x)[1])
    plan = plan_of(8)
    for positions, copies in ((1 << 18, 1), (2 * BATCH * LENGTH, -(-plan.iterations // 2))):
        monkeypatch.setattr(steps_module, "BLOCK_POSITIONS", positions)
        pinned.clear()
        moved = steps_of(plan, SEEDS.to("meta"))
        for (step,), (here,) in zip(moved, steps_of(plan, SEEDS), strict=True):
            for ours, theirs in zip(step, here, strict=True):
                if not isinstance(theirs, torch.Tensor):
                    continue
                assert ours.is_meta and ours.dtype == theirs.dtype and ours.shape == theirs.shape
            assert np.array_equal(step.masked, here.masked)
        assert len(pinned) == copies


def test_nothing_to_do():
    plan = plan_reveals(SEEDS, torch.zeros(BATCH, LENGTH, dtype=torch.bool), SCHEDULE, 4)
    assert list(steps_of(plan, SEEDS)) == []
