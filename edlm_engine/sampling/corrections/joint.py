"""The paper's correction: K independent completions, one chosen by its weight.

With q the denoiser's law of the masked positions given xt, K candidates x0 are drawn from q, one is
chosen with probability softmax(-E(x0) / T) over them, and the step reveals its tokens (EDLM,
Algorithm 1). As K grows the law of x0 tends to q(x0) exp(-E(x0) / T), normalised.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from torch import Tensor

from edlm_engine import ops
from edlm_engine.sampling.corrections import enough
from edlm_engine.sampling.steps import Step

if TYPE_CHECKING:
    from edlm_engine.sampling.run import Run

PARTICLES = False


def start(run: Run) -> dict[str, Tensor]:
    """See `Correction.start`."""
    return {}


def finish(run: Run) -> None:
    """See `Correction.finish`."""


def advance(
    run: Run,
    step: Step,
    values: Tensor | None,
    share: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """See `Correction.advance`. `share` changes tokens and log q [R, K] before they are placed."""
    assert values is not None
    recorder = run.recorder
    tokens, drawn, statistics = run.draw(
        values.flatten(0, 1), step, statistics=recorder is not None
    )
    if share is not None:
        tokens, drawn = share(tokens), share(drawn)
    scored = len(step.times)
    x0 = run.x0[:scored]
    # On CUDA a row of bad logits has token -1. No model may see that, and asking the device
    # here would stall it: it is placed as 0 and noted, and the end of the run reports it.
    xt, log_q = ops.place_candidates(
        tokens,
        drawn,
        step.draws,
        step.draw_starts,
        step.rows,
        x0,
        run.xt,
        run.failed,
        first_position=run.first_scored,
    )
    if recorder is not None and statistics is not None:
        recorder.plain(step, drawn, statistics)
    if scored == 0:
        return
    target, counts = run.config.ess_target, None
    if target is None:
        energy = run.energies(x0, xt, log_q, step)
        run.evaluations[step.rows_on_host[:scored]] += x0.shape[1]
    else:
        energy, counts = enough.energies(run, x0, xt, log_q, step, target)
    choice = ops.reveal_chosen(
        energy,
        step.choice_keys,
        x0,
        step.reveals,
        step.reveal_starts,
        step.rows[:scored],
        step.columns,
        run.xt,
        run.ess,
        run.log_z,
        run.failed,
        temperature=run.config.energy_temperature,
    )
    if counts is not None:  # the mean is over those that were scored
        run.log_z[step.rows[:scored], step.columns] += (x0.shape[1] / counts).log()
    if recorder is not None and statistics is not None:
        recorder.scored(step, energy, log_q, choice, drawn, run.config.energy_temperature)
        recorder.chosen(step, choice, drawn, statistics)
