"""The sampling loop of EDLM (Algorithm 1): draw K candidates, choose one by energy, reveal some."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from edlm_engine import ops
from edlm_engine.energies.protocol import Energy, energy_function
from edlm_engine.execution.graphs import call_model
from edlm_engine.execution.upload import upload
from edlm_engine.models.denoiser import Denoiser, device_of
from edlm_engine.sampling.config import GenerationConfig
from edlm_engine.sampling.generation import Generation
from edlm_engine.sampling.plan import RevealPlan
from edlm_engine.sampling.steps import Step

# A nucleus this small holds the most probable token alone: no vocabulary reaches 1e12 tokens.
ARGMAX_TOP_P = 1e-12

# What a run holds of each sequence, and of each of its energy steps, NaN where it has fewer.
BY_ROW = ("xt", "seeds", "failed")
BY_ENERGY_STEP = ("ess", "log_z")


class Run:
    """Sequences that are sampled alike, on the device: their state, and the step that advances it.

    Rows depend on nothing but themselves, so they may be taken out and joined in any order.
    """

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
        self.device = device_of(denoiser)
        tokens, self.seeds = upload(self.device, xt.flatten(), seeds)
        # A copy, which may be changed in this mode where the caller's may not.
        self.xt = tokens.view(xt.shape).clone()
        # Totals of each sequence, on the host.
        self.nfe, self.energy_steps = plan.nfe, plan.energy_steps
        diagnostics = (len(xt), int(plan.energy_steps.max(initial=0)))
        self.ess = torch.full(diagnostics, torch.nan, device=self.device)
        self.log_z = self.ess.clone()
        self.failed = torch.zeros(len(xt), dtype=torch.int64, device=self.device)
        self.x0 = self._candidates()

    def __len__(self) -> int:
        return len(self.xt)

    def _candidates(self) -> Tensor:
        """Room for the candidates [B, K, L] of a step."""
        candidates = 0 if self.energy is None else self.config.num_candidates
        return self.xt.new_empty(len(self.xt), candidates, self.xt.shape[1])

    def rows(self, rows: np.ndarray) -> Run:
        """A copy of these sequences [n]."""
        part = copy(self)
        part.nfe, part.energy_steps = self.nfe[rows], self.energy_steps[rows]
        (index,) = upload(self.device, torch.from_numpy(rows))
        for name in (*BY_ROW, *BY_ENERGY_STEP):
            setattr(part, name, getattr(self, name).index_select(0, index))
        width = int(part.energy_steps.max(initial=0))
        for name in BY_ENERGY_STEP:
            setattr(part, name, getattr(part, name)[:, :width])
        part.x0 = part._candidates()
        return part

    def joined(self, other: Run) -> Run:
        """These sequences and then those of another run of the same length, sampled alike."""
        both = copy(self)
        both.nfe = np.concatenate([self.nfe, other.nfe])
        both.energy_steps = np.concatenate([self.energy_steps, other.energy_steps])
        for name in BY_ROW:
            setattr(both, name, torch.cat([getattr(self, name), getattr(other, name)]))
        width = max(self.ess.shape[1], other.ess.shape[1])
        for name in BY_ENERGY_STEP:
            parts = [getattr(run, name) for run in (self, other)]
            padded = [pad(x, (0, width - x.shape[1]), value=torch.nan) for x in parts]
            setattr(both, name, torch.cat(padded))
        both.x0 = both._candidates()
        return both

    def inputs(self, step: Step) -> tuple[Tensor, Tensor]:
        """What the denoiser is given: a copy of xt [n, L], and sigma [n]."""
        return self.xt.index_select(0, step.rows), step.sigmas

    def advance(self, step: Step, values: Tensor | None = None) -> None:
        """One reverse step of the step's sequences: xt at t_{i-1} becomes xt at t_i.

        `values`: what `evaluate` gives for the step's `inputs`, if it was called already.
        Models are given copies of xt, and no more than the revealed tokens is written back: one
        that changes its input changes nothing of the sequences.
        """
        if values is None:
            values = evaluate(self.denoiser, *self.inputs(step))
        tokens, log_q = self._draw(values.flatten(0, 1), step)
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

    def _draw(self, values: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Draws at the step's positions: tokens [R, K], log_q (of no use at the last fills)."""
        keys = step.draw_keys
        values = values if len(keys) == len(values) else values[step.draws]
        # Candidate 0 does not depend on K, so sequences with and without the energy share a call.
        candidates = self.config.num_candidates if len(step.times) else 1
        cut = len(keys) - (step.fill_draws if self.config.final == "argmax" else 0)
        if cut == len(keys):
            return self._sample(values, keys, candidates, self.config.top_p)
        drawn = self._sample(values[:cut], keys[:cut], candidates, self.config.top_p)
        filled = self._sample(values[cut:], keys[cut:], candidates, ARGMAX_TOP_P)
        return torch.cat([drawn[0], filled[0]]), torch.cat([drawn[1], filled[1]])

    def _sample(
        self, values: Tensor, keys: Tensor, candidates: int, top_p: float
    ) -> tuple[Tensor, Tensor]:
        options: dict[str, Any] = {
            "forbidden_id": self.denoiser.mask_id,
            "temperature": self.config.temperature,
            "top_p": top_p,
        }
        if not _has_head(self.denoiser):
            return ops.sample_candidates(values, keys, candidates, **options)
        weight, bias = self.denoiser.head
        return ops.head_sample_candidates(values, weight, keys, candidates, bias=bias, **options)

    def result(self, tokenizer=None) -> Generation:
        """What was generated; waits for the device, and raises RuntimeError for bad numbers."""
        failed = self.failed.nonzero().flatten().tolist()
        if failed:
            raise RuntimeError(
                "logits or log_weights held NaN, +inf or nothing but -inf "
                f"in {len(failed)} of {len(self.xt)} sequences, the first of them {failed[0]}"
            )
        texts = None if tokenizer is None else [tokenizer.decode(row) for row in self.xt.tolist()]
        evaluations = self.energy_steps * self.config.num_candidates
        # Copies, because tensors made in inference mode could not be changed in place by the user.
        with torch.inference_mode(False):
            return Generation(
                sequences=self.xt.clone(),
                texts=texts,
                seeds=self.seeds.clone(),
                nfe=torch.from_numpy(self.nfe).to(self.device, copy=True),
                energy_evaluations=torch.from_numpy(evaluations).to(self.device),
                ess=self.ess.clone(),
                log_z=self.log_z.clone(),
            )


def evaluate(denoiser: Any, xt: Tensor, sigma: Tensor) -> Tensor:
    """The denoiser's hidden states [n, L, D] of xt [n, L], or logits [n, L, V] without a head."""
    name = "hidden" if _has_head(denoiser) else "logits"
    values = call_model(denoiser, name, xt, sigma)
    width = denoiser.head[0].shape[1] if _has_head(denoiser) else denoiser.vocab_size
    _check_returned(f"the denoiser's {name}", values, (*xt.shape, width), xt.device)
    return values


def _has_head(denoiser: object) -> bool:
    return hasattr(denoiser, "hidden")


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
