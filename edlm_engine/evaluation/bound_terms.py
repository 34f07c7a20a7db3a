"""The terms of the bounds on -log p that one noisy window after another gives."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from edlm_engine import ops
from edlm_engine.energies.protocol import energy_function
from edlm_engine.engine import Engine
from edlm_engine.evaluation.likelihood import log_partition_bounds, selection_gain
from edlm_engine.evaluation.marginals import Marginals, sums
from edlm_engine.evaluation.metrics import effective_sample_size
from edlm_engine.evaluation.noising import Noisy
from edlm_engine.models.denoiser import device_of
from edlm_engine.sampling.config import GenerationConfig
from edlm_engine.sampling.purposes import CANDIDATES


def bound_terms(
    engine: Engine, part: Noisy, config: GenerationConfig, candidates: Sequence[int], pool: int
) -> dict[str, Tensor]:
    """Per noisy window [G], float64 nats on the host:

    denoiser: -log p_theta of what is revealed. With `candidates`, 0 where a step uses no energy:
    gain K: how much more likely K candidates make it, at least (see `selection_gain`).
    paper lower, paper upper: what the paper's formula adds, by either side of Theorem 1.
    And NaN there: log_z width, ess: of the `pool` samples behind log Z.
    """
    denoiser: Any = engine.denoiser
    device = device_of(denoiser)
    x0, masked = part.x0.to(device), torch.from_numpy(part.masked).to(device)
    rows, length = x0.shape
    places = masked.flatten().nonzero().flatten()
    xt, target = x0.masked_fill(masked, denoiser.mask_id), x0.flatten()[places]
    sigmas = part.sigmas.to(device)
    marginals = Marginals(denoiser, xt, sigmas, places, temperature=config.temperature)
    log_p = marginals.log_probs(target)
    # What a step reveals is a random part of what is masked: the mean over such parts is taken.
    share = torch.from_numpy(part.revealed.sum(1) / part.masked.sum(1))
    terms = {"denoiser": -share * sums(log_p, places, rows, length).cpu()}
    if not candidates:
        return terms
    zero = torch.zeros(rows, dtype=torch.float64)
    gains = {f"gain {k}": zero.clone() for k in candidates}
    paper = {f"paper {side}": zero.clone() for side in ("lower", "upper")}
    facts = {name: torch.full_like(zero, torch.nan) for name in ("log_z width", "ess")}
    if (used := np.flatnonzero(part.uses_energy)).size:
        scored = torch.from_numpy(used)
        inside = torch.from_numpy(part.uses_energy).to(device)[places // length].nonzero().flatten()
        drawn = Places(marginals.at(inside), log_p[inside], target[inside], places[inside])
        data, free, fixed = log_weights(engine, part, config, xt, drawn, pool, pool)
        bounds = log_partition_bounds(free)
        for name, log_z in zip(paper, bounds, strict=True):
            paper[name][scored] = share[scored] * (log_z - data)
        facts["log_z width"][scored] = bounds[1] - bounds[0]
        facts["ess"][scored] = effective_sample_size(free)
        for k, name in zip(candidates, gains, strict=True):
            gains[name][scored] = selection_gain(fixed, free, k)
    return terms | gains | paper | facts


def all_terms(
    engine: Engine,
    noisy: Noisy,
    config: GenerationConfig,
    candidates: Sequence[int] = (),
    pool: int = 0,
    *,
    batch_size: int,
    progress: bool = False,
) -> dict[str, Tensor]:
    """`bound_terms` of all noisy windows, `batch_size` at a time."""
    needs_grad = any(getattr(x, "needs_grad", False) for x in (engine.denoiser, engine.energy))
    total, parts = len(noisy.x0), []
    bar = tqdm(total=total, desc="likelihood", unit="noisy window", disable=not progress)
    with torch.inference_mode(not needs_grad), torch.no_grad(), ops.one_head_workspace(), bar:
        for begin in range(0, total, batch_size):
            part = noisy.part(begin, begin + batch_size)
            parts.append(bound_terms(engine, part, config, candidates, pool))
            bar.update(len(part.x0))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}


class Places(NamedTuple):
    """The masked places [R], flat in [G, L], of the rows that use the energy."""

    marginals: Marginals
    log_p: Tensor  # [R] of the window's own tokens
    target: Tensor  # [R] those tokens
    places: Tensor  # [R]


def log_weights(
    engine: Engine,
    part: Noisy,
    config: GenerationConfig,
    xt: Tensor,
    drawn: Places,
    pool: int,
    held: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """log-weights, -energy / temperature, float64 on the host, of the E rows that use the energy:
    the window itself [E], free candidates [E, pool], and [E, held] with its revealed tokens."""
    assert engine.energy is not None
    length, device = xt.shape[1], xt.device
    rows = torch.from_numpy(np.flatnonzero(part.uses_energy)).to(device)
    owner, position = drawn.places // length, drawn.places % length
    place = torch.searchsorted(rows, owner)  # among the E rows
    keys = ops.stream_keys(part.seeds.to(device)[owner], CANDIDATES, position)
    tokens, log_q = drawn.marginals.sample(keys, pool + held)
    kept = torch.from_numpy(part.revealed).to(device).flatten()[drawn.places]
    tokens[kept, pool:] = drawn.target[kept, None]
    log_q[kept, pool:] = drawn.log_p[kept, None].float()
    # The window itself comes first.
    tokens = torch.cat([drawn.target[:, None], tokens], 1)
    log_q = torch.cat([drawn.log_p[:, None], log_q.double()], 1)
    log_q[position < getattr(engine.energy, "first_position", 0)] = 0
    x0 = xt[rows, None].repeat(1, tokens.shape[1], 1)
    x0[place, :, position] = tokens
    total = torch.zeros(len(rows), tokens.shape[1], dtype=torch.float64, device=device)
    total.index_add_(0, place, log_q)
    energy = energy_function(engine.energy)(
        x0,
        xt[rows],
        total.float(),
        part.times.to(device)[rows].float(),
        masked=part.masked[part.uses_energy],
    )
    log_w = (-energy.double() / config.energy_temperature).cpu()
    return log_w[:, 0], log_w[:, 1 : 1 + pool], log_w[:, 1 + pool :]
