"""The sampling loop of EDLM (Algorithm 1): draw K candidates, choose one by energy, reveal some."""

from __future__ import annotations

from collections.abc import Callable
from copy import copy
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from edlm_engine import ops
from edlm_engine.energies.protocol import Energy, energy_function
from edlm_engine.execution.graphs import call_model
from edlm_engine.execution.returned import check_returned
from edlm_engine.execution.upload import upload
from edlm_engine.models.denoiser import Denoiser, device_of
from edlm_engine.sampling.config import GenerationConfig
from edlm_engine.sampling.corrections import CORRECTIONS
from edlm_engine.sampling.ending import texts_of
from edlm_engine.sampling.generation import Generation
from edlm_engine.sampling.law import ARGMAX, bias_of, law_of
from edlm_engine.sampling.orders import ADAPTIVE
from edlm_engine.sampling.picking import advance_adaptive
from edlm_engine.sampling.record import Recorder
from edlm_engine.sampling.steps import Step

# What a run holds of each sequence, and of each of its energy steps, NaN where it has fewer.
BY_ROW = ("xt", "seeds", "failed", "known")
ON_HOST = ("nfe", "energy_steps", "evaluations", "free")
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
        xt: Tensor,
        seeds: Tensor,
        nfe: np.ndarray,
        energy_steps: np.ndarray,
        most_energy_steps: int,
    ):
        self.denoiser: Any = denoiser  # some have more than the protocol asks
        self.energy = None if energy is None else energy_function(energy)
        self.first_scored = getattr(energy, "first_position", 0)
        self.ar: Any = getattr(energy, "model", None)
        self.residual = float(getattr(energy, "residual", 0))
        self.config = config
        self.device = device_of(denoiser)
        tokens, self.seeds = upload(self.device, xt.flatten(), seeds)
        # A copy, which may be changed in this mode where the caller's may not.
        self.xt = tokens.view(xt.shape).clone()
        # Of each sequence, on the host: in all, or so far where that is not known before.
        self.nfe, self.energy_steps = nfe, energy_steps
        self.evaluations = np.zeros(len(xt), dtype=np.int64)  # of the energy
        self.ess = torch.full((len(xt), most_energy_steps), torch.nan, device=self.device)
        self.log_z = self.ess.clone()
        self.failed = torch.zeros(len(xt), dtype=torch.int64, device=self.device)
        self.free = (xt == self.denoiser.mask_id).numpy()
        self.known = self.xt != self.denoiser.mask_id
        self.order = ADAPTIVE.get(config.order)
        self.x0 = self._candidates()
        self.bias = bias_of(config, denoiser.vocab_size, self.device)
        self.recorder: Recorder | None = None
        if config.record:
            shape = len(xt), xt.shape[1], most_energy_steps, self.x0.shape[1]
            self.recorder = Recorder(*shape, self.device)
        self.correction = CORRECTIONS[config.correction if energy is not None else "joint"]
        self.state = self.correction.start(self)

    def __len__(self) -> int:
        return len(self.xt)

    def _candidates(self) -> Tensor:
        """Room for the candidates [B, K, L] of a step."""
        least = 0 if self.order is None else 1
        candidates = least if self.energy is None else self.config.num_candidates
        return self.xt.new_empty(len(self.xt), candidates, self.xt.shape[1])

    def masked(self) -> np.ndarray:
        """[B, L] bool, where xt is masked now; waits for the device."""
        return (self.xt == self.denoiser.mask_id).cpu().numpy()

    def rows(self, rows: np.ndarray) -> Run:
        """A copy of these sequences [n]."""
        part = copy(self)
        for name in ON_HOST:
            setattr(part, name, getattr(self, name)[rows])
        (index,) = upload(self.device, torch.from_numpy(rows))
        for name in (*BY_ROW, *BY_ENERGY_STEP):
            setattr(part, name, getattr(self, name).index_select(0, index))
        part.state = {name: x.index_select(0, index) for name, x in self.state.items()}
        if self.recorder is not None:
            part.recorder = self.recorder.rows(index)
        part.x0 = part._candidates()
        return part

    def joined(self, other: Run) -> Run:
        """These sequences and then those of another run of the same length, sampled alike."""
        both = copy(self)
        for name in ON_HOST:
            setattr(both, name, np.concatenate([getattr(self, name), getattr(other, name)]))
        both.state = {name: torch.cat([x, other.state[name]]) for name, x in self.state.items()}
        for name in BY_ROW:
            setattr(both, name, torch.cat([getattr(self, name), getattr(other, name)]))
        width = max(self.ess.shape[1], other.ess.shape[1])
        for name in BY_ENERGY_STEP:
            parts = [getattr(run, name) for run in (self, other)]
            padded = [pad(x, (0, width - x.shape[1]), value=torch.nan) for x in parts]
            setattr(both, name, torch.cat(padded))
        if self.recorder is not None and other.recorder is not None:
            both.recorder = self.recorder.joined(other.recorder)
        both.x0 = both._candidates()
        return both

    def inputs(self, step: Step) -> tuple[Tensor, Tensor]:
        """What the denoiser is given: a copy of xt [n, L], and sigma [n].

        What the step finds hidden again is masked first.
        """
        if step.hides is not None:
            length = self.xt.shape[1]
            rows = step.rows[step.hides // length]
            self.xt.view(-1)[rows * length + step.hides % length] = self.denoiser.mask_id
        return self.xt.index_select(0, step.rows), step.sigmas

    def advance(self, step: Step, values: Tensor | None = None) -> None:
        """One reverse step of the step's sequences: xt at t_{i-1} becomes xt at t_i.

        `values`: what `evaluate` gives for the step's `inputs`, if it was called already.
        Models are given copies of xt, and no more than the revealed tokens is written back: one
        that changes its input changes nothing of the sequences.
        """
        if values is None and not self.correction.PARTICLES:
            xt, sigma = self.inputs(step)
            values = self.evaluate(xt, sigma, step.rows)
        if step.pick is not None:
            assert values is not None
            advance_adaptive(self, step, values)
        else:
            self.correction.advance(self, step, values)

    def energies(
        self,
        x0: Tensor,
        xt: Tensor,
        log_q: Tensor,
        step: Step,
        *,
        times: Tensor | None = None,
        masked: np.ndarray | None = None,
    ) -> Tensor:
        """E [E, K] float32 of candidates x0 [E, K, L] of the first E sequences of a step, or of
        those with these times [E] and masked positions [E, L]."""
        assert self.energy is not None  # without one, no step uses it
        times = step.times if times is None else times
        masked = step.masked if masked is None else masked
        energy = self.energy(x0, xt, log_q, times, masked=masked)
        check_returned("the energy", energy, log_q.shape, xt.device)
        return energy.float()

    def draw(
        self,
        values: Tensor,
        step: Step,
        *,
        candidates: int | None = None,
        statistics: bool = False,
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        """Draws at the step's positions of values [n L, D or V]: tokens [R, K], log_q (of no use at
        the last fills), and statistics [R, 3] of the laws if wanted."""
        keys = step.draw_keys
        values = values if len(keys) == len(values) else values[step.draws]
        if candidates is None:
            # Candidate 0 does not depend on K: sequences with and without the energy share a call.
            candidates = self.config.num_candidates if len(step.times) else 1
        drawn = self.sample(values, keys, step, candidates, statistics=statistics)
        return drawn[0], drawn[1], drawn[2] if statistics else None

    def sample(
        self,
        values: Tensor,
        keys: Tensor,
        step: Step,
        candidates: int,
        *,
        repeats: int = 1,
        statistics: bool = False,
    ) -> tuple[Tensor, ...]:
        """`ops.sample_candidates` of values [R, D or V] by the law of the configuration, the last
        of which, `repeats` to a fill of the step, may be filled by the most probable token."""
        fills = step.fill_draws * repeats if self.config.final == "argmax" else 0
        cut, law = len(keys) - fills, law_of(self.config)
        options = {"statistics": True} if statistics else {}
        parts = [self._sample(values[:cut], keys[:cut], candidates, law | options)]
        if fills:
            parts.append(self._sample(values[cut:], keys[cut:], candidates, law | ARGMAX | options))
        return parts[0] if len(parts) == 1 else tuple(map(torch.cat, zip(*parts, strict=True)))

    def token_log_probs(self, values: Tensor, targets: Tensor) -> Tensor:
        """log q [R] float32 of targets [R] under the laws of values [R, D or V], without cuts."""
        options: dict[str, Any] = {
            "forbidden_id": self.denoiser.mask_id,
            "temperature": self.config.temperature,
        }
        return ops.token_log_probs(self.logits(values), targets, **options)

    def evaluate(self, xt: Tensor, sigma: Tensor, rows: Tensor) -> Tensor:
        """The denoiser's values [n, L, D or V] of xt [n, L], tokens of sequences `rows` [n]."""
        if self.config.guidance == 0:
            return evaluate(self.denoiser, xt, sigma)
        known = self.known.index_select(0, rows)
        without = xt.masked_fill(known, self.denoiser.mask_id)
        both = evaluate(self.denoiser, torch.cat([xt, without]), sigma.repeat(2))
        # The head is linear, and the weights sum to 1: what holds of logits holds of hidden states.
        given, free = both.float().chunk(2)
        return (given + self.config.guidance * (given - free)).to(both.dtype)

    def logits(self, values: Tensor) -> Tensor:
        """Logits [R, V] of the law drawn from, before the temperature, of values [R, D or V]."""
        if _has_head(self.denoiser):
            weight, bias = self.denoiser.head
            values = torch.nn.functional.linear(values, weight, bias)
        return values if self.bias is None else values.float() + self.bias

    def _sample(
        self, values: Tensor, keys: Tensor, candidates: int, options: dict[str, Any]
    ) -> tuple[Tensor, ...]:
        options = {"forbidden_id": self.denoiser.mask_id, **options}
        if not _has_head(self.denoiser):
            if self.bias is not None:
                values = values.float() + self.bias
            return ops.sample_candidates(values, keys, candidates, **options)
        weight, bias = self.denoiser.head
        if self.bias is not None:
            bias = self.bias.to(weight.dtype) if bias is None else bias + self.bias.to(bias.dtype)
        return ops.head_sample_candidates(values, weight, keys, candidates, bias=bias, **options)

    @property
    def calls(self) -> int:
        """How many evaluations of the denoiser a step of a sequence takes."""
        particles = self.config.num_candidates if self.correction.PARTICLES else 1
        return particles * (1 if self.config.guidance == 0 else 2)

    def result(self, tokenizer=None) -> Generation:
        """What was generated; waits for the device, and raises RuntimeError for bad numbers."""
        self.correction.finish(self)
        failed = self.failed.nonzero().flatten().tolist()
        if failed:
            raise RuntimeError(
                "logits or log_weights held NaN, +inf or nothing but -inf "
                f"in {len(failed)} of {len(self.xt)} sequences, the first of them {failed[0]}"
            )
        texts = None if tokenizer is None else texts_of(self, tokenizer)
        width = int(self.energy_steps.max(initial=0))
        # Copies, because tensors made in inference mode could not be changed in place by the user.
        with torch.inference_mode(False):
            return Generation(
                sequences=self.xt.clone(),
                texts=texts,
                seeds=self.seeds.clone(),
                nfe=torch.from_numpy(self.nfe * self.calls).to(self.device, copy=True),
                energy_evaluations=torch.from_numpy(self.evaluations).to(self.device, copy=True),
                ess=self.ess[:, :width].clone(),
                log_z=self.log_z[:, :width].clone(),
                particles=self._kept("particles"),
                log_weights=self._kept("log_weights"),
                record=None if self.recorder is None else self.recorder.record(width),
            )

    def _kept(self, name: str) -> Tensor | None:
        return self.state[name].clone() if name in self.state else None


def evaluate(denoiser: Any, xt: Tensor, sigma: Tensor) -> Tensor:
    """The denoiser's hidden states [n, L, D] of xt [n, L], or logits [n, L, V] without a head."""
    name = "hidden" if _has_head(denoiser) else "logits"
    values = call_model(denoiser, name, xt, sigma)
    width = denoiser.head[0].shape[1] if _has_head(denoiser) else denoiser.vocab_size
    check_returned(f"the denoiser's {name}", values, (*xt.shape, width), xt.device)
    return values


def _has_head(denoiser: object) -> bool:
    return hasattr(denoiser, "hidden")
