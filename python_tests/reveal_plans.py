"""Every reveal plan of three positions, and what a sampler says of a text along them, exactly."""

import math
from itertools import permutations, product

import numpy as np
import torch
from enumeration import step_distribution

from edlm_engine import LogLinearSchedule

MASK, LENGTH = 1, 3
SCHEDULE = LogLinearSchedule(eps=0.2)  # a late end: the fill after t_N has much to do


def sigma(t):
    return float(SCHEDULE.sigma(torch.tensor(t, dtype=torch.float64)))


def plans(steps):
    """(probability, [(time, masked before, revealed)]) of every reveal plan of three positions."""
    if steps is None:
        for order in permutations(range(LENGTH)):
            path = [(0.0, order[rank:], order[rank : rank + 1]) for rank in range(LENGTH)]
            yield 1 / math.factorial(LENGTH), path
        return
    times = SCHEDULE.times(steps).tolist()
    shares = -np.diff([*times, 0.0])
    for chosen in product(range(steps + 1), repeat=LENGTH):
        path = [
            (
                times[i],
                [p for p in range(LENGTH) if chosen[p] >= i],
                [p for p in range(LENGTH) if chosen[p] == i],
            )
            for i in sorted(set(chosen))
        ]
        yield float(np.prod(shares[list(chosen)])), path


def exact_bound(tiny, energy, config, x0):
    """The expectation over plans of the sum of -log p(x_A | before), nats."""
    low, high = config.energy_times
    total = 0.0
    for chance, path in plans(config.steps):
        for t, masked, revealed in path:
            xt = tuple(MASK if p in masked else v for p, v in enumerate(x0))
            inside = config.steps is None or low <= t <= high
            candidates = config.num_candidates if inside else 1
            noise = 0.0 if config.steps is None else sigma(t)
            law = step_distribution(
                tiny, xt, noise, t, energy, candidates, temperature=config.temperature
            )
            hit = sum(p for x, p in law.items() if all(x[i] == x0[i] for i in revealed))
            total -= chance * math.log(hit)
    return total
