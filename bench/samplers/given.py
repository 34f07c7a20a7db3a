"""The samplers that are compared, and how to bring another."""

from __future__ import annotations

import importlib
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from bench.baselines import ReleasedRun
from bench.quality.samplers import LEFT_TO_RIGHT
from bench.samplers.counting import Sampler
from edlm_engine import ARResidualEnergy, Engine, GenerationConfig, ops
from edlm_engine.sampling.rules import CORRECTIONS, ORDERS, PLANNED

REMASK = 0.2
NAIVE = "joint, coAR"
EXACT, TEXT, MDLM, AR = "exact draws", "the text itself", "MDLM", "AR, left to right"
OWN_BUDGET = ("speculative", "gibbs")  # corrections whose cost is not K in each step
NOT_ALONE = (*PLANNED, "resolved")  # shown by other names, or nothing without a correction


@dataclass(frozen=True)
class Compared:
    """A sampler with its name. family: those of one differ in how much they do, and are joined in
    plots. budget: sequences that it scores with the AR model, about, if it takes a budget."""

    name: str
    sample: Sampler
    family: str
    facts: dict[str, Any] = field(default_factory=dict)
    budget: int | None = None


ADAPTIVE = tuple(order for order in ORDERS if order not in NOT_ALONE)


def samplers(
    steps: int,
    candidates: Sequence[int],
    others: Sequence[str] = (),
    orders: Sequence[str] = ("leftmost", *ADAPTIVE),
) -> list[Compared]:
    """All of them with `steps` steps, those with an energy with each number of candidates."""
    plain = [
        ours(MDLM, steps=steps),
        ours("MDLM, twice the steps", family=MDLM, steps=2 * steps),
        ours("one token at a time", family=MDLM, steps=None),
        ours("ReMDM", remask=REMASK, steps=steps),
        *(ours(order, order=order, steps=steps) for order in orders),
        released("released MDLM", steps, 1),
    ]
    corrected = [
        ours(f"{name} K={k}", True, name, steps * k, correction=name, num_candidates=k, steps=steps)
        for name in CORRECTIONS
        for k in candidates
        if name not in OWN_BUDGET
    ]
    if "gibbs" in CORRECTIONS:
        corrected += [gibbs(k, steps) for k in candidates if k >= 2]
    if "speculative" in CORRECTIONS:
        for order, n, window in (
            ("leftmost", 1, 1.0),
            ("ancestral", steps, 1.0),
            ("resolved", steps, 0.5),
        ):
            name = f"speculative {order}" + ("" if window == 1 else f" window={window}")
            options = {"order": order, "steps": n, "window": window}
            corrected.append(ours(name, True, correction="speculative", **options))
    corrected += [with_carry_over(f"joint, coAR K={k}", k, steps) for k in candidates[-1:]]
    loops = [released(f"released EDLM, sign right K={k}", steps, k) for k in candidates]
    return [*plain, *corrected, *loops, left_to_right(), *map(brought, others)]


def ours(
    name: str,
    with_energy: bool = False,
    family: str | None = None,
    budget: int | None = None,
    **options: Any,
) -> Compared:
    """The engine with this configuration; without the energy one candidate."""
    if not with_energy:
        options["num_candidates"] = 1
    config = GenerationConfig(**options)

    def sample(denoiser: Any, energy: Any, canvas: Tensor, seeds: Sequence[int]) -> Tensor:
        engine = Engine(denoiser, energy if with_energy else None)
        out = engine.generate(len(canvas), config=config, canvas=canvas, seed=list(seeds))
        return out.sequences

    return Compared(name, sample, family or name, {"sampler": name, **options}, budget)


def gibbs(candidates: int, steps: int) -> Compared:
    """Two sweeps of half as many particles, or of half the steps where that would be one.

    For `candidates` a power of 2: the cost is that of so many candidates in each of `steps`.
    """
    particles = max(2, candidates // 2)
    steps_of_each = max(1, steps * candidates // (2 * particles))
    name = f"gibbs K={particles} N={steps_of_each}, two sweeps"
    options = {"correction": "gibbs", "sweeps": 1, "num_candidates": particles}
    return ours(name, True, "gibbs", steps * candidates, steps=steps_of_each, **options)


def with_carry_over(name: str, candidates: int, steps: int) -> Compared:
    """The paper's correction with the energy EDLM-coAR."""
    plain = ours(name, True, num_candidates=candidates, steps=steps, budget=steps * candidates)

    def sample(denoiser: Any, energy: Any, canvas: Tensor, seeds: Sequence[int]) -> Tensor:
        carried = ARResidualEnergy(energy.model, True, max_tokens=energy.max_tokens)
        return plain.sample(denoiser, carried, canvas, seeds)

    return replace(plain, sample=sample, family=NAIVE, facts=plain.facts | {"coar": True})


def released(name: str, steps: int, candidates: int) -> Compared:
    """The loop of the published code (`bench.baselines`), its sign and its layout put right, its
    float32 noise as it is; what is still masked at its last time is filled by one more step."""

    def sample(denoiser: Any, energy: Any, canvas: Tensor, seeds: Sequence[int]) -> Tensor:
        run = ReleasedRun(
            denoiser, getattr(energy, "model", None), canvas, num_candidates=candidates, window=1.0
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seeds[0])
            for t, s in itertools.pairwise([*torch.linspace(1, 1e-5, steps + 1).tolist(), 0.0]):
                run.step(t, s)
        return run.xt

    budget = None if candidates == 1 else steps * candidates
    family = name.split(" K=")[0]
    facts = {"sampler": family, "steps": steps, "num_candidates": candidates}
    return Compared(name, sample, family, facts, budget)


def left_to_right() -> Compared:
    """The AR model, token after token; known tokens are kept, those to the right not looked at."""

    def sample(denoiser: Any, energy: Any, canvas: Tensor, seeds: Sequence[int]) -> tuple:
        model, length = energy.model, canvas.shape[1]
        keys = ops.stream_keys(torch.tensor(list(seeds)), LEFT_TO_RIGHT)
        weight, bias = model.head
        tokens = canvas.masked_fill(canvas == denoiser.mask_id, 0)
        first = model.first_position
        for place in range(length):
            free = canvas[:, place] == denoiser.mask_id
            if not free.any():
                continue
            hidden = model.hidden(tokens[:, : place + 1])[:, -1]
            keys_here = ops.stream_keys(keys, place)
            options = {"bias": bias, "forbidden_id": model.forbidden_id}
            drawn, _ = ops.head_sample_candidates(hidden, weight, keys_here, 1, **options)
            tokens[:, place] = torch.where(free, drawn[:, 0], tokens[:, place])
        # With a cache each position goes through the model once: one pass in all.
        return tokens, 0, 1, length - first

    return Compared(AR, sample, AR, {"sampler": "left to right"})


def brought(place: str) -> Compared:
    """Another's sampler, named as module:function. Raises ValueError if there is none."""
    module, _, name = place.partition(":")
    try:
        sample = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(f"--sampler must be module:function, got {place}: {error}") from error
    if not callable(sample):
        raise ValueError(f"--sampler must be a function, {place} is a {type(sample).__name__}")
    return Compared(place, sample, place, {"sampler": place})
