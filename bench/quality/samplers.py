"""Samplers that the engine's are compared with: the AR model itself, and the released code's loop.

The released loop is restated with every fault as a switch. With all of them off it has the law of
the engine, and is the control: whatever differs from it differs by the fault.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from bench.baselines import released_race
from edlm_engine import Engine, ops
from edlm_engine.energies.residual import sequence_log_probs
from edlm_engine.evaluation.settings import Drawn, Setting

LEFT_TO_RIGHT = 201  # what a random stream is for, beside those of the engine


@torch.inference_mode()
def left_to_right(model, seeds: Sequence[int], length: int) -> Drawn:
    """Sequences [n, length] of an AR model, token after token, without a cache."""
    keys = ops.stream_keys(torch.tensor(list(seeds)), LEFT_TO_RIGHT)
    tokens = torch.zeros(len(keys), length, dtype=torch.int64)
    weight, bias = model.head
    for position in range(length):
        # Row l depends on the tokens before it: the last one may hold anything.
        hidden = model.hidden(tokens[:, : position + 1])[:, -1]
        drawn, _ = ops.head_sample_candidates(
            hidden,
            weight,
            ops.stream_keys(keys, position),
            1,
            bias=bias,
            forbidden_id=model.forbidden_id,
        )
        tokens[:, position] = drawn[:, 0]
    passes = torch.ones(len(keys), dtype=torch.int64)  # what it takes with a cache: one in all
    return Drawn(tokens, nfe=torch.zeros_like(passes), energy_evaluations=passes)


def left_to_right_setting(model, length: int) -> Setting:
    return Setting(
        "AR, left to right",
        {"sampler": "left to right", "length": length},
        lambda seeds: left_to_right(model, seeds, length),
    )


@dataclass(frozen=True)
class Faults:
    """What the released code does otherwise; the defaults are right.

    plus_energy: the candidates' weights are softmax(+E), not softmax(-E).
    mixed_rows: [K, B] is read as [B, K], so a sequence may get another one's candidate.
    probabilities: the energy is given the sum of p_theta of the tokens for the sum of log p_theta.
    noise: of the draws. "exact"; "float32", one exponential race of all tokens and the mask in
        float32; "bfloat16", the candidates by a race whose probabilities and uniforms are bfloat16,
        and the rest in float32.
    """

    plus_energy: bool = False
    mixed_rows: bool = False
    probabilities: bool = False
    noise: str = "exact"


RELEASED = Faults(plus_energy=True, mixed_rows=True, probabilities=True, noise="bfloat16")


def faults_setting(
    name: str, engine: Engine, faults: Faults, *, steps: int, candidates: int, energy_steps: bool
) -> Setting:
    """`energy_steps`: candidates at every step, even with one; else the plain step of MDLM."""
    facts = {"sampler": "released loop", "steps": steps, "num_candidates": candidates}
    facts |= {"energy_steps": energy_steps, **asdict(faults)}

    def draw(seeds: Sequence[int]) -> Drawn:
        run = _ReleasedLoop(engine, faults, seeds, candidates if energy_steps else 0)
        return run.all_steps(steps)

    return Setting(name, facts, draw)


class _ReleasedLoop:
    """One generation; random numbers are a function of all its seeds together."""

    def __init__(self, engine: Engine, faults: Faults, seeds: Sequence[int], candidates: int):
        self.denoiser, self.ar = engine.denoiser, getattr(engine.energy, "model", None)
        self.faults, self.candidates = faults, candidates
        self.length, self.mask_id = engine.denoiser.length, engine.denoiser.mask_id
        self.xt = torch.full((len(seeds), self.length), self.mask_id)
        self.random = torch.Generator().manual_seed(seeds[0])
        self.nfe = torch.zeros(len(seeds), dtype=torch.int64)
        self.scored, self.ess = self.nfe.clone(), []

    @torch.inference_mode()
    def all_steps(self, steps: int) -> Drawn:
        # As in the released code, which draws from torch's one generator.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(torch.randint(2**62, (), generator=self.random)))
            for t, s in itertools.pairwise([*torch.linspace(1, 1e-5, steps + 1).tolist(), 0.0]):
                self._step(t, s)
        ess = torch.stack(self.ess, 1) if self.ess else None
        log_z = None if ess is None else torch.full_like(ess, torch.nan)
        return Drawn(self.xt, self.nfe, self.scored, ess, log_z)

    def _step(self, t: float, s: float) -> None:
        masked = self.xt == self.mask_id
        if not masked.any():
            return
        self.nfe += masked.any(1)
        logits = self.denoiser.logits(self.xt, torch.zeros(len(self.xt))).float().clone()
        logits[..., self.mask_id] = -torch.inf
        probs = torch.softmax(logits, -1)
        if self.candidates:
            x0 = self._chosen(probs, masked)
            probs = torch.nn.functional.one_hot(x0, probs.shape[-1]).float()
        self.xt = torch.where(masked, self._reverse(probs, t, s), self.xt)

    def _reverse(self, probs: Tensor, t: float, s: float) -> Tensor:
        """Tokens of the next state at every position, the mask where it stays."""
        if self.faults.noise == "exact":
            drawn = _draw(probs, 1)[:, :, 0]
            stays = torch.rand(drawn.shape, dtype=torch.float64) < s / t
            return drawn.masked_fill(stays, self.mask_id)
        race = probs * (t - s)
        race[..., self.mask_id] = s
        return released_race(race)

    def _chosen(self, probs: Tensor, masked: Tensor) -> Tensor:
        """[B, L]: of K candidates one by its energy, that of the released code's AR model."""
        count, rows = self.candidates, len(probs)
        if self.faults.noise == "exact":
            x0 = _draw(probs, count).permute(2, 0, 1)  # [K, B, L], as released
        else:
            exact = probs if self.faults.noise == "float32" else probs.bfloat16()
            x0 = released_race(exact, count).view(count, rows, -1)
        x0 = torch.where(masked, x0, self.xt)
        p = probs.expand(count, *probs.shape).gather(-1, x0[..., None])[..., 0].double()
        p = torch.where(masked, p, 1.0)
        log_q = (p if self.faults.probabilities else p.log()).sum(-1)
        energy = log_q - sequence_log_probs(self.ar, x0.flatten(0, 1)).view(count, rows)
        self.scored += count * masked.any(1)
        sign = 1.0 if self.faults.plus_energy else -1.0
        weights = torch.softmax(sign * energy, 0)  # [K, B]
        self.ess.append(torch.where(masked.any(1), 1 / (weights**2).sum(0), torch.nan))
        if not self.faults.mixed_rows:
            choice = weights.T.multinomial(1)[:, 0]
            return x0[choice, torch.arange(rows)]
        mixed = torch.softmax(sign * energy.reshape(rows, count), 1).multinomial(1)[:, 0]
        return x0.reshape(rows, count, -1)[torch.arange(rows), mixed]


def _draw(probs: Tensor, num: int) -> Tensor:
    """Exact draws [B, L, num] from probabilities [B, L, V]."""
    flat = probs.flatten(0, 1)
    keys = torch.randint(2**62, (len(flat),))
    return ops.sample_candidates(flat.log(), keys, num)[0].view(*probs.shape[:2], num)
