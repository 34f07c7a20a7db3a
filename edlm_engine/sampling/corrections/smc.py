"""Sequential Monte Carlo: K particles for each sequence, resampled as their weights part.

Each particle has its own xt and takes the steps of the plan with tokens of its own. In an energy
step it draws a whole completion x0 of its xt, of which the step's positions are revealed, and its
weight becomes W = exp(-E(x0) / T); for an energy that holds log q of the masked positions
(`residual`, as that of an AR model does), log q of what it revealed before is counted too, so that
W = p_AR(x0) / q(all of x0, as it was drawn). The draft of what is still hidden looks ahead: its
weight guides the resampling and is replaced by that of the next step, so nothing but the finished
text is weighed in the end. Where the effective sample size falls below `ess_threshold` times K, the
particles are resampled (systematic resampling), and in the end one is chosen by weight.

The law: the particles and their weights are a properly weighted sample of the target, the law of
the plan's own draws times W of the finished text, if the last step uses the energy (`window`), and
`log_z`, the running estimate after each energy step, is that of a Z without bias. `Generation` has
`particles` and `log_weights`; the chosen one follows the target as K grows. For the AR energy in
full window the target is p_AR itself, restricted to the known tokens.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from edlm_engine import ops
from edlm_engine.reference import uniform
from edlm_engine.sampling.purposes import FINAL
from edlm_engine.sampling.steps import Step

if TYPE_CHECKING:
    from edlm_engine.sampling.run import Run

PARTICLES = True
GRID = 2.0**30  # numbers on multiples of 1 / GRID add without rounding, in any order


def start(run: Run) -> dict[str, Tensor]:
    """See `Correction.start`: xt of the particles, log q of what each has revealed, log of its
    last W, log-weights since they were resampled, and log Z of all resamplings before."""
    shape = len(run.xt), run.config.num_candidates if run.energy is not None else 1
    zeros = torch.zeros(shape, dtype=torch.float64, device=run.device)
    return {
        "particles": run.xt[:, None].repeat(1, shape[1], 1),
        "past": zeros,
        "twist": zeros.clone(),
        "log_weights": zeros.clone(),
        "log_z": zeros[:, 0].clone(),
    }


def advance(run: Run, step: Step, values: Tensor | None, reference: Tensor | None = None) -> None:
    """See `Correction.advance`.

    reference: texts [n, L] that particle 0 of each sequence follows, -1 throughout for none.
    """
    state, length = run.state, run.xt.shape[1]
    cloud = state["particles"].index_select(0, step.rows)  # [n, P, L]
    n, count, scored = len(cloud), cloud.shape[1], len(step.times)
    if step.hides is not None:
        cloud[step.hides // length, :, step.hides % length] = run.denoiser.mask_id
    xt = cloud.flatten(0, 1)
    first = int(step.masked.sum())
    revealed = torch.zeros(n * length, dtype=torch.bool, device=run.device)
    revealed[step.reveals] = True
    revealed[step.draws[first:]] = True
    forced = None
    if reference is not None:
        forced = reference.flatten()[step.draws].masked_fill(~revealed[step.draws], -1)
    tokens, log_q = _draw(run, step, xt.clone(), count, forced)
    owner, position = step.draws // length, step.draws % length
    counted = torch.round(log_q.double() * GRID) / GRID
    counted = counted * (position >= run.first_scored)[:, None]
    x0 = cloud.clone()
    x0[owner, :, position] = tokens
    now = counted * revealed[step.draws][:, None]
    past = state["past"].index_select(0, step.rows)
    after = past.index_add(0, owner, now)
    cloud = torch.where(revealed.view(n, 1, length), x0, cloud)
    log_weights = state["log_weights"].index_select(0, step.rows)
    twist = state["twist"].index_select(0, step.rows)
    log_z = state["log_z"].index_select(0, step.rows)
    if scored:
        sums = torch.zeros_like(past[:scored]).index_add_(0, owner[:first], counted[:first])
        own = _log_w(run, step, x0[:scored], xt.view(x0.shape)[:scored], sums, past[:scored])
        log_weights[:scored] += own - twist[:scored]
        twist[:scored] = own
        run.evaluations[step.rows_on_host[:scored]] += count
        held = None if reference is None else reference[:scored, 0] >= 0
        index, log_mean, ess = _resampled(run, step, log_weights[:scored], held)
        rows = step.rows[:scored]
        run.ess[rows, step.columns] = ess.float()
        run.log_z[rows, step.columns] = (log_z[:scored] + log_mean).float()
        again = ess < run.config.ess_threshold * count
        log_z[:scored] += torch.where(again, log_mean, 0.0)
        log_weights[:scored] = log_weights[:scored].masked_fill(again[:, None], 0.0)
        keep = torch.arange(count, device=run.device).expand_as(index)
        index = torch.where(again[:, None], index, keep)
        for value in (twist, after):
            value[:scored] = value[:scored].gather(1, index)
        cloud[:scored] = cloud[:scored].gather(1, index[:, :, None].expand(-1, -1, length))
    for name, value in (
        ("particles", cloud),
        ("past", after),
        ("twist", twist),
        ("log_weights", log_weights),
        ("log_z", log_z),
    ):
        state[name].index_copy_(0, step.rows, value)
    best = log_weights.argmax(dim=1)
    run.xt.index_copy_(0, step.rows, cloud[torch.arange(n, device=run.device), best])


def finish(run: Run) -> None:
    """See `Correction.finish`: one particle by its weight."""
    keys = ops.stream_keys(run.seeds, FINAL)
    run.xt, choice = chosen(run.state["particles"], run.state["log_weights"], keys)
    run.failed |= (choice < 0).long()


def chosen(particles: Tensor, log_weights: Tensor, keys: Tensor) -> tuple[Tensor, Tensor]:
    """One of particles [n, P, L] by its weight, [n, L], and which, -1 for bad weights."""
    choice, _, _ = ops.resample(log_weights.float(), keys)
    rows = torch.arange(len(choice), device=choice.device)
    return particles[rows, choice.clamp(min=0)], choice


def _draw(
    run: Run, step: Step, xt: Tensor, count: int, forced: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Tokens and log q [R, P] at the step's draws, of each particle's own laws.

    forced: [R], tokens that particle 0 takes, -1 for none.
    """
    sigmas, rows = (x.repeat_interleave(count) for x in (step.sigmas, step.rows))
    values = run.evaluate(xt, sigmas, rows)
    length = run.xt.shape[1]
    particle = torch.arange(count, device=run.device)
    places = (step.draws // length)[:, None] * count + particle
    places = places * length + (step.draws % length)[:, None]
    keys = ops.stream_keys(step.draw_keys[:, None], particle)
    values = values.flatten(0, 1)[places.flatten()]
    tokens, log_q = run.sample(values, keys.flatten(), step, 1, repeats=count)
    if forced is not None:
        own = run.token_log_probs(values.view(*places.shape, -1)[:, 0], forced.clamp(min=0))
        tokens, log_q = tokens.view(places.shape), log_q.view(places.shape)
        tokens[:, 0] = torch.where(forced >= 0, forced, tokens[:, 0])
        log_q[:, 0] = torch.where(forced >= 0, own, log_q[:, 0])
    failed = (tokens < 0).view(-1, count).any(dim=1).long()
    run.failed.index_put_((step.rows[step.draws // length],), failed, accumulate=True)
    return tokens.view(-1, count).clamp(min=0), log_q.view(-1, count)


def _log_w(run: Run, step: Step, x0: Tensor, xt: Tensor, log_q: Tensor, past: Tensor) -> Tensor:
    """log W [E, P] of completions x0 [E, P, L] of xt; log_q of what is masked, past of the rest."""
    count = x0.shape[1]
    energy = run.energies(
        x0.flatten(0, 1)[:, None].contiguous(),
        xt.flatten(0, 1),
        log_q.float().view(-1, 1),
        step,
        times=step.times.repeat_interleave(count),
        # What was free at the start counts, all of which a particle's weight is about.
        masked=np.repeat(run.free[step.rows_on_host[: len(x0)]], count, axis=0),
    ).double()
    energy = energy.view(-1, count)
    if run.residual:
        energy = energy + run.residual * past
    return -energy / run.config.energy_temperature


def _resampled(
    run: Run, step: Step, log_weights: Tensor, held: Tensor | None
) -> tuple[Tensor, Tensor, Tensor]:
    """Who takes each place [E, P], log of the mean weight and ESS [E].

    Systematic resampling; where `held` [E] particle 0 stays, and the others are drawn one by one.
    """
    count = log_weights.shape[1]
    top = log_weights.amax(dim=1, keepdim=True)
    bad = ~top[:, 0].isfinite() | log_weights.isnan().any(dim=1)
    run.failed.index_put_((step.rows[: len(top)],), bad.long(), accumulate=True)
    weights = torch.where(bad[:, None], 1.0, (log_weights - top).exp())
    total = weights.sum(dim=1)
    ess = total.square() / weights.square().sum(dim=1)
    u = uniform(ops.stream_keys(step.choice_keys))[:, None]
    particle = torch.arange(count, device=run.device)
    comb = (particle + u) / count
    if held is not None:
        alone = uniform(ops.stream_keys(step.choice_keys[:, None], particle))
        comb = torch.where(held[:, None], alone, comb)
    sums = weights.cumsum(dim=1)
    index = torch.searchsorted(sums, comb * sums[:, -1:], right=True).clamp(max=count - 1)
    if held is not None:
        index[:, 0] = torch.where(held, 0, index[:, 0])
    return index, top[:, 0] + (total / count).log(), ess
