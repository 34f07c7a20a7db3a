"""How far a sampler's texts are from those of its denoiser taken one token at a time.

A denoiser that reveals one position at a time, in a random order, has a joint law of its own; a
sampler that reveals several at once, or tilts its draws, has another. Which of them is better text
does not matter here: this judges the sampler, not the model. Two measures, in nats per token:

`joint_nats`, for any sampler: the mean of -log p(x_l | x before) under the denoiser along random
orders. Its difference to the same of texts that were sampled one at a time is a distance of one
statistic: 0 for equal laws, but not only for them. Below 0 the sampler prefers what the denoiser
finds likely, above it says what the denoiser would not.

`refinement_kl`, for a sampler without energy: with x a text and u the times at which its positions
are revealed, KL(sampler(x, u) || one at a time(x, u)), without bias. It is at least the KL of the
texts alone, and 0 only where the laws are equal.
"""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edlm_engine import ops
from edlm_engine.engine import Engine
from edlm_engine.evaluation.bound_terms import all_terms
from edlm_engine.evaluation.marginals import Marginals, sums
from edlm_engine.evaluation.noising import PICK, noisy_windows
from edlm_engine.models.denoiser import device_of
from edlm_engine.reference import uniform
from edlm_engine.sampling.config import GenerationConfig
from edlm_engine.sampling.plan import plan_reveals

ONE_AT_A_TIME = GenerationConfig(steps=None, num_candidates=1)
# Fields that change the path of a sampler without energy in a way that is followed here.
FOLLOWED = ("steps", "num_candidates", "window", "energy_temperature", "temperature", "length")


def joint_nats(
    engine: Engine,
    sequences: Tensor,
    *,
    draws: int = 4,
    seed: int = 0,
    first: int = 0,
    batch_size: int = 16,
) -> Tensor:
    """-log p of sequences [B, L] along random orders, nats per token: [B] float64 on the CPU.

    `draws` places of stratified rank in an order each, over all positions that could come next.
    Sequence i takes the orders of number first + i, so that different samplers can be compared at
    the same ones.
    """
    noisy = noisy_windows(sequences.cpu(), engine.schedule, None, None, draws, seed, first)
    terms = all_terms(engine, noisy, ONE_AT_A_TIME, batch_size=batch_size)
    return (noisy.steps * terms["denoiser"]).view(-1, draws).mean(1) / sequences.shape[1]


def can_refine(config: GenerationConfig) -> bool:
    """Whether `refinement_kl` knows the law of a sampler of this configuration without energy."""
    plain = GenerationConfig(num_candidates=config.num_candidates)
    others = (f.name for f in fields(config) if f.name not in FOLLOWED)
    return all(getattr(config, name) == getattr(plain, name) for name in others)


def refinement_kl(
    engine: Engine,
    sequences: Tensor,
    seeds: Tensor,
    config: GenerationConfig,
    *,
    draws: int = 4,
    seed: int = 0,
    first: int = 0,
    batch_size: int = 16,
) -> Tensor:
    """Unbiased estimates of the Kullback-Leibler divergence above, nats per token: [B] float64.

    sequences [B, L] must be what the engine's denoiser alone drew from `seeds` [B] under `config`:
    their reveal times are found again from the seeds. At a position chosen by stratified rank, the
    log-probability of what is left of its step when the step began, less that when it had come to
    this position alone. Raises ValueError for a configuration that `can_refine` does not know.
    """
    if not can_refine(config):
        raise ValueError("refinement_kl knows steps, temperature and length of a sampler only")
    count, length = sequences.shape
    seeds, sequences = seeds.cpu(), sequences.cpu()
    free = torch.ones(count, length, dtype=torch.bool)
    steps = plan_reveals(seeds, free, engine.schedule, config.steps)
    one_by_one = plan_reveals(seeds, free, engine.schedule, None)
    number = torch.arange(first, first + count)
    stratum = torch.arange(draws) + uniform(ops.stream_keys(seed, PICK, number))[:, None]
    rank = np.floor(length * stratum.numpy() / draws).astype(np.int64).flatten()  # [B * draws]
    rows = np.arange(count).repeat(draws)
    open_now = one_by_one.masked(rows, rank)  # [G, L]: not yet revealed one at a time
    chosen = one_by_one.revealed(rows, rank)
    step = np.where(chosen, steps.revealed_in[rows], 0).sum(1)
    # Of the whole step at its beginning, what is left of it now: any of it could come next.
    open_then = steps.revealed_in[rows] >= step[:, None]
    rest = open_now & (steps.revealed_in[rows] == step[:, None])
    column = (steps.numbers[rows] == step[:, None]).argmax(1)
    then, now = steps.times[rows, column], one_by_one.times[rows, rank]
    each = []
    with torch.inference_mode(), ops.one_head_workspace():
        for begin in range(0, len(rows), batch_size):
            here = slice(begin, begin + batch_size)
            x = sequences[torch.from_numpy(rows[here])]
            left, began, come = rest[here], open_then[here], open_now[here]
            drawn = _mean_log_p(engine, x, left, began, then[here], config.temperature)
            each.append(drawn - _mean_log_p(engine, x, left, come, now[here], 1.0))
    return torch.cat(each).view(count, draws).mean(1)


def _mean_log_p(
    engine: Engine,
    x: Tensor,
    asked: np.ndarray,
    masked: np.ndarray,
    times: np.ndarray,
    temperature: float,
) -> Tensor:
    """Mean over the `asked` positions of log p(x_l | x where it is not masked): [G] float64."""
    denoiser: Any = engine.denoiser
    device = device_of(denoiser)
    xt = x.masked_fill(torch.from_numpy(masked), denoiser.mask_id).to(device)
    sigma = engine.schedule.sigma(torch.from_numpy(times)).float().to(device)
    places = torch.from_numpy(np.flatnonzero(asked)).to(device)
    marginals = Marginals(denoiser, xt, sigma, places, temperature=temperature)
    log_p = marginals.log_probs(x.to(device).flatten()[places])
    return sums(log_p, places, *x.shape).cpu() / torch.from_numpy(asked.sum(1))
