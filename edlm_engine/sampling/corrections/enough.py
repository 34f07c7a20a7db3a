"""As many candidates as it takes: energies of the first ones, until their weights tell enough.

Candidates are scored by doubling numbers, from two on, until a sequence's effective sample size is
`ess_target` or all K are scored; those that are not scored are never chosen. Candidate j does not
depend on K, so a sequence is the same whatever it is beside. The host waits once for each doubling.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from edlm_engine.execution.upload import upload
from edlm_engine.sampling.steps import Step

if TYPE_CHECKING:
    from edlm_engine.sampling.run import Run


def energies(
    run: Run, x0: Tensor, xt: Tensor, log_q: Tensor, step: Step, target: float
) -> tuple[Tensor, Tensor]:
    """E [E, K] float32, +inf where not scored, and how many were scored of each [E] int64."""
    scored, most = log_q.shape
    energy = torch.full_like(log_q, torch.inf)
    counts = np.zeros(scored, dtype=np.int64)
    rows, done = np.arange(scored), 0
    while len(rows) and done < most:
        until = min(max(2, 2 * done), most)
        (here,) = upload(run.device, torch.from_numpy(rows))
        part = slice(done, until)
        new = run.energies(
            x0[here, part],
            xt[here],
            log_q[here, part],
            step,
            times=step.times[here],
            masked=step.masked[rows],
        )
        energy[here, part] = new
        counts[rows] = done = until
        log_weights = -energy[here, :done].double() / run.config.energy_temperature
        weights = (log_weights - log_weights.amax(dim=1, keepdim=True)).exp()
        ess = weights.sum(dim=1).square() / weights.square().sum(dim=1)
        rows = rows[~(ess >= target).cpu().numpy()]
    run.evaluations[step.rows_on_host[:scored]] += counts
    (counts_,) = upload(run.device, torch.from_numpy(counts))
    return energy, counts_
