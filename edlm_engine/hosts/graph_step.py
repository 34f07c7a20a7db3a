"""One step of a generation as one function of tensors: for compilers, packages and CUDA graphs."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from edlm_engine import ops
from edlm_engine.models.denoiser import Denoiser
from edlm_engine.sampling.purposes import CANDIDATES, RESAMPLE, REVEAL
from edlm_engine.sampling.schedule import LogLinearSchedule


class GraphStep(nn.Module):
    """A step of each of B sequences, without a branch, a wait or a shape that depends on a value.

    `torch.compile(fullgraph=True)`, `torch.export`, AOTInductor and `torch.cuda.graph` take it as
    it is, if they take the denoiser's `logits` and the energy. It draws at every position and the
    plan is made again in each call, which is what a fixed shape costs; in return nothing but the
    canvas is carried from step to step.

    Called with the same seeds, the steps 1 to N + 1 give the tokens that `Engine.generate` gives
    with `order="ancestral"` and `correction="joint"`, up to the rounding of the compiled model.
    An energy is used in every step (`window=1`); step N + 1 fills what is left at t_N.

    Randomness is addressed: a call is a pure function of its arguments. Bad logits end as in
    :mod:`edlm_engine.ops`: an error on the CPU, token -1 on CUDA.

    Args:
        denoiser: a `Denoiser`; a module's parameters become part of the graph.
        steps: N.
        energy: (x0 [B, K, L], xt [B, L], log_q [B, K], t [B]) -> [B, K], lower being likelier.
        num_candidates: K, with an energy.
        law: `temperature`, `top_p`, `top_k`, `min_p` of :func:`edlm_engine.ops.sample_candidates`.
    """

    mask_probs: Tensor
    times: Tensor
    sigmas: Tensor

    def __init__(
        self,
        denoiser: Denoiser,
        steps: int,
        *,
        energy: Callable[[Tensor, Tensor, Tensor, Tensor], Tensor] | None = None,
        num_candidates: int = 1,
        energy_temperature: float = 1.0,
        schedule: Any = None,
        **law: Any,
    ):
        super().__init__()
        if steps < 1 or num_candidates < 1:
            raise ValueError(
                f"steps and num_candidates must be at least 1, got {steps} and {num_candidates}"
            )
        if num_candidates > 1 and energy is None:
            raise ValueError(f"num_candidates={num_candidates} needs an energy to choose by")
        schedule = LogLinearSchedule() if schedule is None else schedule
        times = schedule.times(steps)
        self.denoiser, self.energy, self.num_candidates = denoiser, energy, num_candidates
        self.energy_temperature, self.law = energy_temperature, law
        self.register_buffer("mask_probs", schedule.mask_prob(times))
        self.register_buffer("times", times.float())
        self.register_buffer("sigmas", schedule.sigma(times).float())

    def plan(self, seeds: Tensor, length: int) -> Tensor:
        """The step that reveals each position: [B, L] int64 in 1..N + 1. Other steps do nothing."""
        return ops.reveal_steps(ops.stream_keys(seeds, REVEAL), length, self.mask_probs)

    def forward(self, xt: Tensor, seeds: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
        """The canvas after step `number [B]` int64, 1 to N + 1, and the draws' log-probabilities.

        Args:
            xt: [B, L] int64, `mask_id` where free.
            seeds: [B] int64, `ops.stream_keys(seed, b)` for sequence b of `generate(seed=seed)`,
                `ops.stream_keys(seed)` for a sequence with a seed of its own.

        Returns:
            xt [B, L] int64; log_q [B, L] float32, 0 where the step revealed nothing.
        """
        (batch, length), mask = xt.shape, self.denoiser.mask_id
        logits = self.denoiser.logits(xt, self.sigmas[number - 1])
        places = torch.arange(length, device=xt.device)
        keys = ops.stream_keys(seeds[:, None], CANDIDATES, number[:, None], places)
        drawn = ops.sample_candidates(
            logits.flatten(0, 1),
            keys.flatten(),
            self.num_candidates,
            forbidden_id=mask,
            **self.law,
        )
        # Candidates are dimension 1.
        tokens, log_q = (x.view(batch, length, -1).transpose(1, 2) for x in drawn)
        masked = xt == mask
        if self.energy is not None:
            x0 = torch.where(masked[:, None], tokens, xt[:, None])
            total = log_q.masked_fill(~masked[:, None], 0).sum(dim=2)
            energy = self.energy(x0, xt, total, self.times[number - 1])
            choice_keys = ops.stream_keys(seeds, RESAMPLE, number)
            choice, _, _ = ops.resample(-energy / self.energy_temperature, choice_keys)
            # take_along_dim would fix B in an export.
            choice = choice[:, None, None].expand(-1, 1, length)
            tokens, log_q = (x.gather(1, choice) for x in (tokens, log_q))
        shown = masked & (self.plan(seeds, length) == number[:, None])
        return torch.where(shown, tokens[:, 0], xt), log_q[:, 0].masked_fill(~shown, 0)
