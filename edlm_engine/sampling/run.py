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
from edlm_engine.energies.residual import on_grid
from edlm_engine.execution.graphs import call_model
from edlm_engine.execution.upload import upload
from edlm_engine.models.denoiser import Denoiser, device_of
from edlm_engine.sampling.config import GenerationConfig
from edlm_engine.sampling.plan import CANDIDATES, RESAMPLE, RevealPlan, Step

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
        self.xt = tokens.view(
            xt.shape
        ).clone()  # may be changed in this mode, if not in the caller's
        diagnostics = (len(xt), int(plan.energy_steps.max(initial=0)))
        self.ess = torch.full(diagnostics, torch.nan, device=self.device)
        self.log_z = self.ess.clone()
        candidates = 0 if energy is None else config.num_candidates
        self.x0 = self.xt.new_empty(len(xt), candidates, xt.shape[1])
        self.failures = torch.zeros(len(xt), dtype=torch.int64, device=self.device)

    def advance(self, step: Step) -> None:
        """One reverse step of the step's sequences: xt at t_{i-1} becomes xt at t_i.

        Models are given copies of xt, and no more than the revealed tokens is written back: one
        that changes its input changes nothing of the sequences.
        """
        step = step.to(self.device)
        tokens, log_q = self._draw(self.xt[step.rows], step)
        revealed = tokens[step.energy_draws :, 0]
        if len(step.energy_index):
            rows = step.rows[: len(step.energy_index)]
            x0 = self._choose(self.xt[rows], tokens, log_q, step)
            revealed = torch.cat([x0.flatten()[step.reveals[: step.energy_reveals]], revealed])
        row, position = step.reveals // self.xt.shape[1], step.reveals % self.xt.shape[1]
        self.xt[step.rows[row], position] = revealed

    def _draw(self, xt: Tensor, step: Step) -> tuple[Tensor, Tensor]:
        """Draws at the step's positions: tokens [R, K], log_q (of no use at the last fills)."""
        row, position = step.draws // xt.shape[1], step.draws % xt.shape[1]
        keys = ops.stream_keys(self.seeds[step.rows][row], CANDIDATES, step.numbers[row], position)
        values = self._values(xt, step.sigmas.float(), step.draws)
        # Candidate 0 does not depend on K, so sequences with and without the energy share a call.
        candidates = self.config.num_candidates if len(step.energy_index) else 1
        cut = len(keys) - (step.fill_draws if self.config.final == "argmax" else 0)
        tokens, log_q = self._sample(values[:cut], keys[:cut], candidates, self.config.top_p)
        if cut < len(keys):
            fill, _ = self._sample(values[cut:], keys[cut:], candidates, ARGMAX_TOP_P)
            tokens = torch.cat([tokens, fill])
        self._note_failures(step.rows[row], tokens[:, 0])
        return tokens.clamp(min=0), log_q

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

    def _choose(self, xt: Tensor, tokens: Tensor, log_q: Tensor, step: Step) -> Tensor:
        """The chosen candidate x0 [E, L] of each of the first E sequences, whose tokens xt are."""
        sequences, candidates = len(step.energy_index), self.config.num_candidates
        rows, numbers = step.rows[:sequences], step.numbers[:sequences]
        tokens, log_q = tokens[: step.energy_draws], log_q[: step.energy_draws]
        draws = step.draws[: step.energy_draws]
        row, position = draws // xt.shape[1], draws % xt.shape[1]
        x0 = self.x0[:sequences].copy_(xt[:, None])
        x0[row, :, position] = tokens
        unscored = position < self.first_scored
        log_q = on_grid(log_q).masked_fill(unscored[:, None], 0)
        log_q = log_q.new_zeros(sequences, candidates).index_add_(0, row, log_q).float()
        times = step.times[:sequences].float()
        assert self.energy is not None  # without one, no step of a plan uses it
        energy = self.energy(x0, xt, log_q, times, masked=step.masked)
        _check_returned("the energy", energy, log_q.shape, xt.device)
        log_weights = -energy.float() / self.config.energy_temperature
        keys = ops.stream_keys(self.seeds[rows], RESAMPLE, numbers)
        choice, ess, log_z = ops.resample(log_weights, keys)
        self.ess[rows, step.energy_index] = ess
        self.log_z[rows, step.energy_index] = log_z
        self._note_failures(rows, choice)
        return x0[torch.arange(sequences, device=self.device), choice.clamp(min=0)]

    def _note_failures(self, rows: Tensor, choices: Tensor) -> None:
        # On CUDA a bad row ends as choice -1. No model may see that as a token, and asking the
        # device here would stall it: callers clamp it to 0, and the end of the run reports it.
        self.failures.index_add_(0, rows, (choices < 0).long())

    def result(self, tokenizer=None) -> Generation:
        failed = self.failures.nonzero().flatten().tolist()
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
