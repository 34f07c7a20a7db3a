"""Particle Gibbs: sweeps of sequential Monte Carlo, each around the text of the one before it.

The first sweep is `smc`. Each of the `sweeps` that follow begins anew from the known tokens, with
the same plan: particle 0 follows the text that was chosen, whatever its weights, the others are
drawn beside it and resampled as in `smc` (but one by one, which leaves the text its place), and one
is chosen by weight (conditional SMC, Andrieu et al. 2010). A sweep leaves the target of `smc`
invariant for any number of particles, and with two or more of them the law of the text tends to it
as sweeps go on: more time buys exactness where more particles would not fit.

`ess` and `log_z` have the steps of all sweeps one after another; `log_z` is an unbiased estimate in
the first alone.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edlm_engine import ops
from edlm_engine.sampling.corrections import smc
from edlm_engine.sampling.plan import SWEEP
from edlm_engine.sampling.purposes import FINAL
from edlm_engine.sampling.steps import Step

if TYPE_CHECKING:
    from edlm_engine.sampling.run import Run

PARTICLES = True
OF_A_SWEEP = ("past", "twist", "log_weights", "log_z")


def start(run: Run) -> dict[str, Tensor]:
    """See `Correction.start`: as `smc`, the sweep that is on, and the text of the one before."""
    sweep = torch.zeros(len(run.xt), dtype=torch.int64, device=run.device)
    return smc.start(run) | {"sweep": sweep, "reference": torch.full_like(run.xt, -1)}


def advance(run: Run, step: Step, values: Tensor | None) -> None:
    """See `Correction.advance`."""
    state, rows = run.state, step.rows
    sweep = step.numbers // SWEEP
    begins = sweep > state["sweep"][rows]
    text, choice = smc.chosen(
        state["particles"][rows],
        state["log_weights"][rows],
        ops.stream_keys(run.seeds[rows], FINAL, state["sweep"][rows]),
    )
    run.failed[rows] |= (begins & (choice < 0)).long()
    reference = torch.where(begins[:, None], text, state["reference"][rows])
    state["reference"][rows], state["sweep"][rows] = reference, sweep
    for name in OF_A_SWEEP:
        value = state[name]
        clear = begins.view(-1, *[1] * (value.dim() - 1))
        value[rows] = value[rows].masked_fill(clear, 0.0)
    smc.advance(run, step, values, reference)


def finish(run: Run) -> None:
    """See `Correction.finish`: one particle of the last sweep by its weight."""
    state = run.state
    keys = ops.stream_keys(run.seeds, FINAL, state["sweep"])
    run.xt, choice = smc.chosen(state["particles"], state["log_weights"], keys)
    run.failed |= (choice < 0).long()
