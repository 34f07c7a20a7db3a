"""The step of an adaptive order: draw, choose by energy, then reveal the surest positions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edlm_engine import ops
from edlm_engine.sampling.corrections import speculative
from edlm_engine.sampling.steps import Step

if TYPE_CHECKING:
    from edlm_engine.sampling.run import Run


def advance_adaptive(run: Run, step: Step, values: Tensor) -> None:
    """One step of the step's sequences, given the denoiser's values [n, L, D or V]."""
    order, pick = run.order, step.pick
    assert order is not None and pick is not None
    tokens, log_q, statistics = run.draw(
        values.flatten(0, 1),
        step,
        statistics=order.NEEDS_STATISTICS or run.recorder is not None,
    )
    n, scored, length = len(step.rows_on_host), len(step.times), run.xt.shape[1]
    x0 = run.x0[:n, : tokens.shape[1]].contiguous()
    _, sums = ops.place_candidates(
        tokens,
        log_q,
        step.draws,
        step.draw_starts,
        step.rows,
        x0,
        run.xt,
        run.failed,
        first_position=run.first_scored,
    )
    choice, settled = torch.zeros_like(step.rows), None
    before = run.xt.index_select(0, step.rows)
    if scored and run.config.correction == "speculative":
        settled = speculative.one_call(run, step, values, x0[:scored, 0], log_q)
    elif scored:
        energy = run.energies(x0[:scored], before[:scored].clone(), sums[:scored], step)
        run.evaluations[step.rows_on_host[:scored]] += x0.shape[1]
        choice[:scored] = _choose(run, step, energy)
        if run.recorder is not None:
            temperature = run.config.energy_temperature
            run.recorder.scored(step, energy, sums[:scored], choice[:scored], log_q, temperature)
    owner = step.draws // length
    own_log_q = log_q.gather(1, choice[owner, None])[:, 0]
    scores = torch.full((n, length), -torch.inf, device=run.device)
    sure = order.scores(own_log_q, statistics).float().nan_to_num(nan=-1e30, neginf=-1e30)
    scores.view(-1)[step.draws] = sure
    scores = scores.masked_fill(~pick.eligible, -torch.inf)
    revealed = order.pick(scores, pick.quota, run.config) & pick.eligible
    if settled is not None:
        revealed[:scored] = settled
    chosen = x0.gather(1, choice[:, None, None].expand(-1, 1, length))[:, 0]
    if run.recorder is not None and statistics is not None:
        run.recorder.picked(step, revealed, log_q, own_log_q, statistics)
    run.xt.index_copy_(0, step.rows, torch.where(revealed, chosen, before))


def _choose(run: Run, step: Step, energy: Tensor) -> Tensor:
    """The choice among candidates, as `ops.reveal_chosen` makes and notes it: [E], 0 if bad."""
    rows = step.rows[: len(step.times)]
    log_weights = -energy / run.config.energy_temperature
    choice, ess, log_z = ops.resample(log_weights, step.choice_keys)
    run.ess[rows, step.columns], run.log_z[rows, step.columns] = ess, log_z
    run.failed[rows] |= (choice < 0).long()
    return choice.clamp(min=0)
