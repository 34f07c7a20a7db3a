"""The loop of the released code as it is written, its faults with it, in exact arithmetic.

For comparison with numbers that were published with that code. Reproduced, as laws:

- the times, linspace(1, eps, steps + 1), and the chance (m(t) - m(s)) / m(t) of a reveal;
- the cache of the whole batch: what a step draws from was computed at the first step after the last
  change of any sequence, so it is that step's time that decides whether the energy is used (with
  time conditioning, the step's own);
- the energy: candidates chosen by softmax(+E / is_temp), the wrong sign; E with the sum of the
  denoiser's probabilities in the place of their logarithms, over all positions, position 0 too,
  which the AR model does not score; `ar_carry_over` as configured; the learned energy given t for
  sigma; candidates stored sample by sample and read sequence by sequence, so that with more than
  one sequence a batch they come from other sequences;
- the end: the most probable token, a draw, or the masks left where they are;
- nuclei: ReMDM's, which ends before the token that reaches nucleus_p; DUO's, whose probabilities
  are not renormalised, so that fewer tokens are revealed;
- ReMDM's remasking samplers (`remasking.py`).

Not reproduced: rounding. The released race has float32 noise, or bfloat16 for the energy's
candidates, which cuts the far tail and reveals too few tokens (not in ReMDM and, by default, DUO,
which draw in float64); bfloat16 logits and sums; `torch.allclose` for equality of tokens.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from edlm_engine import ops
from edlm_engine.drop_in.layouts import Call, ModuleSchedule
from edlm_engine.drop_in.models import ModuleDenoiser
from edlm_engine.drop_in.remasking import PLANNED, step_rates
from edlm_engine.energies.protocol import energy_function
from edlm_engine.execution.upload import upload
from edlm_engine.reference import uniform
from edlm_engine.sampling.canvas import sequence_seeds
from edlm_engine.sampling.edlm_config import edlm_window, get, sampling_node

# What a random stream is for: the coordinate that follows the seed in its address.
REVEAL, DRAW, CHOICE, REMASK, ACCEPT = range(5)


class ReleasedRun:
    """One batch. `energy` is asked for [B, K] of x0 [B, K, L] as those of the engine are."""

    def __init__(self, module: Any, denoiser: ModuleDenoiser, energy: Any, call: Call, seed: int):
        self.denoiser = denoiser
        self.energy = None if energy is None else energy_function(energy)
        self.sampling = sampling_node(module.config)
        self.schedule = ModuleSchedule(module, call.eps)
        self.steps = get(self.sampling, "steps") if call.steps is None else call.steps
        self.times = self.schedule.times(self.steps)
        self.time_conditioning = bool(module.time_conditioning)
        self.nucleus = get(self.sampling, "nucleus_p", get(self.sampling, "p_nucleus", 1.0))
        # ReMDM's nucleus stops short and is renormalised, DUO's is neither.
        self.remdm = get(self.sampling, "nucleus_p") is not None
        self.seeds = sequence_seeds(seed, call.batch_size)
        self.masked = torch.ones(call.batch_size, denoiser.length, dtype=torch.bool)
        self.xt = torch.full(self.masked.shape, denoiser.mask_id, device=denoiser.device)
        self.confidence = torch.full(self.masked.shape, -torch.inf)
        self.since = 0  # the step at which xt became what it is
        self.plan: Tensor | None = None
        if get(self.sampling, "sampler") in PLANNED:
            probs = self.schedule.mask_prob(self.times)
            keys = ops.stream_keys(self.seeds, REVEAL)
            self.plan = ops.reveal_steps(keys, denoiser.length, probs)

    def result(self) -> Tensor:
        """Tokens [B, L] int64 on the module's device."""
        for step in range(self.steps):
            hides = self._remasked(step)
            revealed = self._reveal(step, self._revealed(step))
            if hides.any():
                self._hide(hides)
            if revealed or hides.any():
                self.since = step + 1
        end = get(self.sampling, "noise_removal", True)
        if end not in (False, "none") and self.masked.any():
            self._fill(greedy=end != "ancestral")
        return self.xt

    def _uniforms(self, purpose: int, step: int) -> Tensor:
        keys = ops.stream_keys(self.seeds, purpose, step)
        return uniform(ops.stream_keys(keys[:, None], torch.arange(self.masked.shape[1])))

    def _rates(self, step: int) -> tuple[float, Tensor | float]:
        t, s = self.times[step : step + 2].tolist()
        return step_rates(self.sampling, t, s, self.confidence)

    def _remasked(self, step: int) -> Tensor:
        """[B, L] bool, on the host: what the step masks again."""
        if self.plan is not None:
            return torch.zeros_like(self.masked)
        return ~self.masked & (self._uniforms(REMASK, step) < self._rates(step)[1])

    def _revealed(self, step: int) -> Tensor:
        """[B, L] bool, on the host: what the step reveals."""
        if self.plan is not None:
            # A position that DUO's nucleus held back (`_accepted`) has its chance in every step.
            chance = self._reveal_chance(step)
            late = self.masked & (self.plan < step + 1)
            if not late.any():
                return self.plan == step + 1
            return (self.plan == step + 1) | (late & (self._uniforms(REVEAL, step) < chance))
        return self.masked & (self._uniforms(REVEAL, step) < self._rates(step)[0])

    def _reveal_chance(self, step: int) -> float:
        before, after = self.schedule.mask_prob(self.times[step : step + 2]).tolist()
        return 1 - after / before

    def _reveal(self, step: int, reveals: Tensor) -> bool:
        """Draw the tokens of a step and show them; whether any was."""
        if not reveals.any():
            return False
        at = step if self.time_conditioning else self.since
        if self._uses_energy(at):
            places = reveals.flatten().nonzero().flatten().to(self.xt.device)
            tokens = self._chosen(step, at).flatten()[places]
            self._show(reveals, places, tokens)
            return True
        tokens, log_q, kept, places = self._drawn(step, at, reveals)
        if kept is not None and not self.remdm:
            reveals = self._accepted(step, reveals, kept)
            stay = reveals.flatten()[places.cpu()].to(places.device)
            tokens, log_q, places = tokens[stay], log_q[stay], places[stay]
        self._show(reveals, places, tokens)
        if get(self.sampling, "sampler") == "remdm-conf":
            self.confidence.view(-1)[places.cpu()] = -log_q.exp().cpu()
        return bool(reveals.any())

    def _uses_energy(self, step: int) -> bool:
        low, high = edlm_window(self.sampling)
        return self.energy is not None and low <= float(self.times[step]) <= high

    def _show(self, reveals: Tensor, places: Tensor, tokens: Tensor) -> None:
        self.xt.view(-1)[places] = tokens
        self.masked &= ~reveals

    def _hide(self, hides: Tensor) -> None:
        self.xt[hides.to(self.xt.device)] = self.denoiser.mask_id
        self.confidence[hides] = -torch.inf
        self.masked |= hides

    def _accepted(self, step: int, reveals: Tensor, kept: Tensor) -> Tensor:
        """DUO's nucleus: kept [R] of the mass remains, but the mask's weight is what it was.

        A reveal of chance r becomes one of r * kept / (r * kept + 1 - r): it is thinned.
        """
        chance = self._reveal_chance(step)
        share = torch.ones(self.masked.shape, dtype=torch.float64)
        share[reveals] = kept / (chance * kept + 1 - chance)
        return reveals & (self._uniforms(ACCEPT, step) < share)

    def _evaluated(self, at: int, positions: Tensor) -> tuple[Tensor, Tensor]:
        """The denoiser at the time of step `at`: its hidden states or logits at positions [B, L]
        on the host, [R, ...], and where these are, flat in [B, L]."""
        rows = positions.any(dim=1).nonzero().flatten()
        flat = positions.flatten().nonzero().flatten()
        of_rows = positions[rows].flatten().nonzero().flatten()
        device = self.xt.device
        rows, flat, of_rows = upload(device, rows, flat, of_rows)
        sigma = self.schedule.sigma(self.times[at]).float().expand(len(rows)).to(device)
        model: Any = self.denoiser
        forward = model.hidden if hasattr(model, "hidden") else model.logits
        values = forward(self.xt[rows], sigma)
        return values.flatten(0, 1)[of_rows], flat

    def _drawn(
        self, step: int, at: int, positions: Tensor, candidates: int = 1
    ) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
        """tokens and log_q [R, ...] at positions, the mass of each nucleus (None: no nucleus) on
        the host, and where they belong."""
        values, flat = self._evaluated(at, positions)
        keys = ops.stream_keys(self.seeds.to(flat.device), DRAW, step)
        keys = ops.stream_keys(keys[flat // positions.shape[1]], flat % positions.shape[1])
        options: dict[str, Any] = {"forbidden_id": self.denoiser.mask_id}
        kept = None
        if self.nucleus < 1:
            weights, kept = self._nucleus(self._logits(values))
            tokens, log_q = ops.sample_weights(weights, keys, candidates)
        elif hasattr(self.denoiser, "head"):
            weight, bias = self.denoiser.head
            tokens, log_q = ops.head_sample_candidates(
                values, weight, keys, candidates, bias=bias, **options
            )
        else:
            tokens, log_q = ops.sample_candidates(values, keys, candidates, **options)
        if candidates == 1:
            tokens, log_q = tokens[:, 0], log_q[:, 0]
        return tokens, log_q, kept, flat

    def _logits(self, values: Tensor) -> Tensor:
        """[R, V] float32, -inf at the mask."""
        if hasattr(self.denoiser, "head"):
            weight, bias = self.denoiser.head
            values = torch.nn.functional.linear(values, weight, bias)
        logits = values.float()
        logits[:, self.denoiser.mask_id] = -torch.inf
        return logits

    def _nucleus(self, logits: Tensor) -> tuple[Tensor, Tensor]:
        """Probabilities [R, V], 0 outside the nucleus, and their sums [R] float64 on the host."""
        probs = torch.softmax(logits, dim=-1)
        falling, order = probs.sort(dim=-1, descending=True)
        reached = falling.cumsum(dim=-1)
        # ReMDM keeps what ends within the mass, DUO what begins within it; both the first.
        inside = (reached if self.remdm else reached - falling) <= self.nucleus
        inside[:, 0] = True
        probs *= torch.zeros_like(probs).scatter_(-1, order, inside.to(probs.dtype))
        return probs, probs.double().sum(dim=-1).cpu()

    def _chosen(self, step: int, at: int) -> Tensor:
        """x0 [B, L]: for each sequence the candidate that the released weights choose."""
        batch, length = self.masked.shape
        count = get(self.sampling, "is_size", 2)
        tokens, log_q, _, flat = self._drawn(step, at, self.masked, count)
        tokens, log_q = tokens.view(-1, count), log_q.view(-1, count)
        x0 = self.xt[:, None].repeat(1, count, 1)
        x0.view(batch, count, length)[flat // length, :, flat % length] = tokens
        # A known position has the probability 1 and a place in the sum.
        probs = (~self.masked).sum(dim=1, keepdim=True).to(x0.device, torch.float64)
        probs = probs.repeat(1, count).index_add_(0, flat // length, log_q.double().exp())
        t = torch.full((batch,), float(self.times[at]), device=x0.device)
        assert self.energy is not None
        energy = self.energy(x0, self.xt, probs, t, masked=self.masked.numpy())
        # Stored sample by sample, read sequence by sequence.
        weights = energy.T.reshape(batch, count) / get(self.sampling, "is_temp", 1.0)
        keys = ops.stream_keys(self.seeds.to(x0.device), CHOICE, step)
        choice, _, _ = ops.resample(weights.float(), keys)
        place = torch.arange(batch, device=x0.device) * count + choice
        return x0[place % batch, place // batch]

    def _fill(self, greedy: bool) -> None:
        """Show what is still masked: its most probable token, or a draw."""
        last, left = self.steps, self.masked.clone()
        if greedy:
            values, flat = self._evaluated(last, left)
            tokens = self._logits(values).argmax(dim=-1)
        else:
            tokens, _, _, flat = self._drawn(last, last, left)
        self._show(left, flat, tokens)
