"""Candidates that differ only in what the step reveals.

What is not revealed now is drawn once for each of G shared rests (`shared_rests`), candidate k
having the rest k mod G; with G = 1 one rest is common to all. Given the rests, the law of a
candidate is that of `joint` restricted to them: one is chosen with probability softmax(-E / T) over
the K. The weights then vary by what is decided in this step alone, and no longer by text that later
steps draw anew, so more of the K candidates count (a higher ESS). G = K is `joint`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor

from edlm_engine.sampling.corrections import joint
from edlm_engine.sampling.corrections.joint import finish, start  # noqa: F401
from edlm_engine.sampling.steps import Step

if TYPE_CHECKING:
    from edlm_engine.sampling.run import Run

PARTICLES = False


def advance(run: Run, step: Step, values: Tensor | None) -> None:
    """See `Correction.advance`."""
    scored, length = len(step.times), run.xt.shape[1]
    if scored == 0:
        return joint.advance(run, step, values)
    first = int(step.masked.sum())  # draws of the sequences with the energy come first
    revealed = torch.zeros(scored * length, dtype=torch.bool, device=run.device)
    revealed[step.reveals] = True
    own = revealed[step.draws[:first]][:, None]
    candidate = torch.arange(run.config.num_candidates, device=run.device)
    rest = candidate % run.config.shared_rests

    def share(drawn: Tensor) -> Tensor:
        shared = torch.where(own, drawn[:first], drawn[:first].index_select(1, rest))
        return torch.cat([shared, drawn[first:]])

    return joint.advance(run, step, values, share)
