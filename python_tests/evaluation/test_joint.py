"""The distance of a sampler to its denoiser's own joint, against enumeration of tiny models."""

import math
from itertools import permutations

import numpy as np
import pytest
import torch
from enumeration import TinyDenoiser, ancestral, first_hitting
from reveal_plans import LENGTH, MASK, SCHEDULE, exact_bound, plans, sigma
from tiny_models import table_denoiser

from edlm_engine import Engine, GenerationConfig
from edlm_engine.evaluation.joint import can_refine, joint_nats, refinement_kl
from edlm_engine.sampling.plan import plan_reveals

pytestmark = pytest.mark.usefixtures("single_thread")


@pytest.fixture(scope="module")
def tiny():
    return TinyDenoiser(vocab=4, length=LENGTH, mask_id=MASK)


@pytest.fixture(scope="module")
def engine(tiny):
    return Engine(table_denoiser(tiny), schedule=SCHEDULE)


def within(values, exact):
    error = values.std().item() / math.sqrt(len(values))
    assert abs(values.mean().item() - exact) < 4 * error and error < 0.02


def test_joint_nats_are_the_means_over_orders(tiny, engine):
    x = torch.tensor([(0, 2, 3), (2, 2, 0)])
    config = GenerationConfig(steps=None, num_candidates=1)
    for text in x:
        values = joint_nats(engine, text.repeat(2000, 1), draws=3)
        within(values * LENGTH, exact_bound(tiny, None, config, tuple(text.tolist())))
    same = joint_nats(engine, x[:1], first=5, draws=2)
    assert torch.equal(same, joint_nats(engine, x[:1].repeat(6, 1), draws=2)[5:])


def exact_kl(tiny, steps, temperature):
    """KL(sampler(x, plan) || one at a time along the refined plan), by its definition."""
    start = (MASK,) * LENGTH
    times = SCHEDULE.times(steps).tolist()
    law = {}  # over (text, plan), by going through every plan and every text it can make
    for chance, path in plans(steps):
        states = {start: chance}
        for t, _, revealed in path:
            after = {}
            for xt, mass in states.items():
                probs = tiny.probs(xt, sigma(t), temperature)
                for tokens in np.ndindex(*(len(tiny.tokens),) * len(revealed)):
                    xs, p = list(xt), mass
                    for place, token in zip(revealed, tokens, strict=True):
                        xs[place] = tiny.tokens[token]
                        p *= probs[place, xs[place]]
                    after[tuple(xs)] = after.get(tuple(xs), 0.0) + p
            states = after
        key = tuple(tuple(revealed) for _, _, revealed in path)
        for x, mass in states.items():
            law[x, key, tuple(t for t, _, _ in path)] = mass
    assert sum(law.values()) == pytest.approx(1) and len(times) == steps + 1
    total = 0.0
    for (x, sets, path_times), mass in law.items():
        xt, gap = list(start), 0.0
        for t, revealed in zip(path_times, sets, strict=True):
            then = tiny.probs(tuple(xt), sigma(t), temperature)
            orders = list(permutations(revealed))
            for order in orders:
                refined = list(xt)
                for place in order:
                    one = tiny.probs(tuple(refined), 0.0)[place, x[place]]
                    gap += (math.log(then[place, x[place]]) - math.log(one)) / len(orders)
                    refined[place] = x[place]
            for place in revealed:
                xt[place] = x[place]
        total += mass * gap
    return total


@pytest.mark.parametrize(("steps", "temperature"), [(2, 1.0), (1, 1.0), (3, 0.7)])
def test_the_divergence_is_that_of_the_definition(tiny, engine, steps, temperature):
    config = GenerationConfig(steps=steps, num_candidates=1, temperature=temperature)
    out = engine.generate(20_000, config=config, seed=3)
    values = refinement_kl(engine, out.sequences, out.seeds, config, draws=3, batch_size=60_000)
    exact = exact_kl(tiny, steps, temperature)
    within(values * LENGTH, exact)
    start, times = (MASK,) * LENGTH, SCHEDULE.times(steps).tolist()
    mine = ancestral(tiny, start, times, sigma, temperature=temperature)
    truth = first_hitting(tiny, start)
    texts = sum(p * math.log(p / truth[x]) for x, p in mine.items())
    assert 0 < texts < exact  # a bound of the divergence of the texts alone


def test_one_at_a_time_is_at_no_distance(engine):
    config = GenerationConfig(steps=None, num_candidates=1)
    out = engine.generate(50, config=config)
    assert refinement_kl(engine, out.sequences, out.seeds, config).abs().max() < 1e-6
    both = GenerationConfig(steps=None, num_candidates=1, temperature=0.5)
    out = engine.generate(400, config=both)
    assert refinement_kl(engine, out.sequences, out.seeds, both).mean() > 0.05


def test_a_step_and_its_refinement_have_the_same_uniforms():
    """The order within a step is that of continuous time at the same seeds."""
    seeds = torch.arange(50)
    free = torch.ones(50, 16, dtype=torch.bool)
    steps, ranks = (plan_reveals(seeds, free, SCHEDULE, n).revealed_in for n in (4, None))
    rows = np.arange(50)[:, None]
    assert (np.diff(steps[rows, np.argsort(ranks, axis=1)], axis=1) >= 0).all()


def test_what_is_not_followed_is_refused(engine):
    config = GenerationConfig(steps=2, num_candidates=1, top_p=0.9)
    assert not can_refine(config)
    with pytest.raises(ValueError, match="knows steps, temperature and length"):
        refinement_kl(engine, torch.zeros(1, 3, dtype=torch.int64), torch.zeros(1), config)
