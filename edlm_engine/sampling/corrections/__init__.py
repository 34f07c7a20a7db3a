"""How an energy corrects what the denoiser draws: one file for each correction.

Each is a module with what `Correction` says; its docstring states the law of a step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from torch import Tensor

from edlm_engine.sampling.corrections import gibbs, joint, local, smc, speculative
from edlm_engine.sampling.steps import Step

if TYPE_CHECKING:
    from edlm_engine.sampling.run import Run


class Correction(Protocol):
    PARTICLES: bool  # each sequence has several xt: the denoiser is called by `advance` alone

    def start(self, run: Run) -> dict[str, Tensor]:
        """What it keeps of each sequence, tensors [B, ...]."""
        ...

    def advance(self, run: Run, step: Step, values: Tensor | None) -> None:
        """One reverse step of a planned order.

        values: of the denoiser at the step's inputs, None with PARTICLES.
        """
        ...

    def finish(self, run: Run) -> None:
        """Make `run.xt` the sequences that were generated."""
        ...


CORRECTIONS: dict[str, Correction] = {
    "joint": joint,
    "local": local,
    "speculative": speculative,
    "smc": smc,
    "gibbs": gibbs,
}
