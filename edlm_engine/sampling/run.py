"""The sampling loop of EDLM (Algorithm 1): draw K candidates, choose one by energy, reveal some."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor

from edlm_engine import ops
from edlm_engine.energies.protocol import Energy, energy_function
from edlm_engine.execution.graphs import call_model
from edlm_engine.execution.upload import upload
from edlm_engine.models.denoiser import Denoiser, device_of
from edlm_engine.sampling.config import GenerationConfig
from edlm_engine.sampling.plan import RevealPlan
from edlm_engine.sampling.steps import Step

# A nucleus this small holds the most probable token alone: no vocabulary reaches 1e12 tokens.
ARGMAX_TOP_P = 1e-12


@dataclass(frozen=True, repr=False)
class Generation:
    """What `Engine.generate` returns; tensors are on the denoiser's device.

    Energy steps count up per sequence: column s of `ess` and `log_z` is a sequence's own s-th one,
    NaN where it had fewer than S, the most of any sequence.
    """

    sequences: Tensor  # [B, L] int64
    texts: list[str] | None  # decoded sequences; None without a tokenizer
    seeds: Tensor  # [B] int64: given back as `seed`, they repeat the sequences
    nfe: Tensor  # [B] int64: denoiser evaluations
    energy_evaluations: Tensor  # [B] int64: candidates scored
    ess: Tensor  # [B, S] float32 in [1, K]: effective sample size (sum w)^2 / sum w^2
    log_z: Tensor  # [B, S] float32: log of the mean weight, Theorem 1's estimate of log Z

    def __repr__(self) -> str:
        """What there is, in a few lines: tensors by their shape, the first text by its start."""
        shapes = ", ".join(
            f"{name} {list(value.shape)}"
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        )
        first = f",\n  texts[0] {shorten(self.texts[0], 80)!r}" if self.texts else ""
        return f"Generation({shapes}{first})"


class Run:
    """The state of one generation on the device, and the step that advances it."""

    def __init__(
        self,
        denoiser: Denoiser,
        energy: Energy | Callable[..., Tensor] | None,
        config: GenerationConfig,
        plan: RevealPlan,
        xt: Tensor,
        seeds: Tensor,
    ):
        self.denoiser: Any = denoiser  # some have more than the protocol asks
        self.energy = None if energy is None else energy_function(energy)
        self.first_scored = getattr(energy, "first_position", 0)
        self.config = config
        self.plan = plan
        self.device = device_of(denoiser)
        tokens, self.seeds = upload(self.device, xt.flatten(), seeds)
        # A copy, which may be changed in this mode where the caller's may not.
        self.xt = tokens.view(xt.shape).clone()
        diagnostics = (len(xt), int(plan.energy_steps.max(initial=0)))
        self.ess = torch.full(diagnostics, torch.nan, device=self.device)
        self.log_z = self.ess.clone()
        candidates = 0 if energy is None else config.num_candidates
        self.x0 = self.xt.new_empty(len(xt), candidates, xt.shape[1])
        self.failed = torch.zeros(len(xt), dtype=torch.int64, device=self.device)

    def advance(self, step: Step) -> None:
        """One reverse step of the step's sequences: xt at t_{i-1} becomes xt at t_i.

        Models are given copies of xt, and no more than the revealed tokens is written back: one
        that changes its input changes nothing of the sequences.
        """
        tokens, log_q = self._draw(self.xt.index_select(0, step.rows), step)
        scored = len(step.times)
        x0 = self.x0[:scored]
        # On CUDA a row of bad logits has token -1. No model may see that, and asking the device
        # here would stall it: it is placed as 0 and noted, and the end of the run reports it.
        xt, log_q = ops.place_candidates(
            tokens,
            log_q,
            step.draws,
            step.draw_starts,
            step.rows,
            x0,
            self.xt,
            self.failed,
            first_position=self.first_scored,
        )
        if scored == 0:
            return
        assert self.energy is not None  # without one, no step of a plan uses it
        energy = self.energy(x0, xt, log_q, step.times, masked=step.masked)
        _check_returned("the energy", energy, log_q.shape, xt.device)
        ops.reveal_chosen(
            energy.float(),
            step.choice_keys,
            x0,
            step.reveals,
            step.reveal_starts,
            step.rows[:scored],
            step.columns,
            self.xt,
            self.ess,
            self.log_z,
            self.failed,
            temperature=self.config.energy_temperature,
        )

    def _draw(self, xt: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Draws at the step's positions: tokens [R, K], log_q (of no use at the last fills)."""
        values, keys = self._values(xt, step.sigmas, step.draws), step.draw_keys
        # Candidate 0 does not depend on K, so sequences with and without the energy share a call.
        candidates = self.config.num_candidates if len(step.times) else 1
        cut = len(keys) - (step.fill_draws if self.config.final == "argmax" else 0)
        if cut == len(keys):
            return self._sample(values, keys, candidates, self.config.top_p)
        drawn = self._sample(values[:cut], keys[:cut], candidates, self.config.top_p)
        filled = self._sample(values[cut:], keys[cut:], candidates, ARGMAX_TOP_P)
        return torch.cat([drawn[0], filled[0]]), torch.cat([drawn[1], filled[1]])

    def _values(self, xt: Tensor, sigma: Tensor, draws: Tensor) -> Tensor:
        """At the drawn positions, hidden states [R, D], or logits [R, V] without a head."""
        name = "hidden" if self._has_head else "logits"
        values = call_model(self.denoiser, name, xt, sigma)
        width = self.denoiser.head[0].shape[1] if self._has_head else self.denoiser.vocab_size
        _check_returned(f"the denoiser's {name}", values, (*xt.shape, width), xt.device)
        values = values.flatten(0, 1)
        return values if len(draws) == len(values) else values[draws]

    @property
    def _has_head(self) -> bool:
        return hasattr(self.denoiser, "hidden")

    def _sample(
        self, values: Tensor, keys: Tensor, candidates: int, top_p: float
    ) -> tuple[Tensor, Tensor]:
        options: dict[str, Any] = {
            "forbidden_id": self.denoiser.mask_id,
            "temperature": self.config.temperature,
            "top_p": top_p,
        }
        if not self._has_head:
            return ops.sample_candidates(values, keys, candidates, **options)
        weight, bias = self.denoiser.head
        return ops.head_sample_candidates(values, weight, keys, candidates, bias=bias, **options)

    def result(self, tokenizer=None) -> Generation:
        failed = self.failed.nonzero().flatten().tolist()
        if failed:
            raise RuntimeError(
                "logits or log_weights held NaN, +inf or nothing but -inf "
                f"in {len(failed)} of {len(self.xt)} sequences, the first of them {failed[0]}"
            )
        texts = None if tokenizer is None else [tokenizer.decode(row) for row in self.xt.tolist()]
        evaluations = torch.from_numpy(self.plan.energy_steps) * self.config.num_candidates
        # Copies, because tensors made in inference mode could not be changed in place by the user.
        return Generation(
            sequences=self.xt.clone(),
            texts=texts,
            seeds=self.seeds.clone(),
            nfe=torch.from_numpy(self.plan.nfe).to(self.device),
            energy_evaluations=evaluations.to(self.device),
            ess=self.ess.clone(),
            log_z=self.log_z.clone(),
        )


def _check_returned(what: str, value: Any, shape: Sequence[int], device: torch.device) -> None:
    """What a model returned must be a tensor of this shape on this kind of device."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{what} must be a tensor, got {type(value).__name__}")
    if value.is_complex() or value.dtype == torch.bool:
        raise ValueError(f"{what} must hold real numbers, got {value.dtype}")
    if value.shape != shape:
        raise ValueError(f"{what} must have shape {list(shape)}, got {list(value.shape)}")
    if value.device.type != device.type:
        raise ValueError(f"{what} must be on {device}, got {value.device}")
