"""Bounds on -log p of held-out text: of the denoiser, of the sampler, and the paper's estimate."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from edlm_engine.energies.residual import ARResidualEnergy, sequence_log_probs
from edlm_engine.engine import Engine
from edlm_engine.evaluation.bound_terms import all_terms
from edlm_engine.evaluation.noising import noisy_windows
from edlm_engine.sampling.config import GenerationConfig

# The fields of a configuration that the bounds know of; others must be at their defaults.
BOUNDED = (
    "steps",
    "num_candidates",
    "window",
    "temperature",
    "energy_temperature",
    "batch_invariant",
    "length",
)


@dataclass(frozen=True)
class Rate:
    """A mean over windows in nats per token, with its standard error."""

    nats_per_token: float
    stderr: float

    @classmethod
    def of(cls, values: Tensor) -> Rate:
        """From one value per window [W], in nats per token; NaN as the error of a single window."""
        return cls(values.mean().item(), values.std().item() / math.sqrt(len(values)))

    def to_json(self, characters_per_token: float | None = None) -> dict[str, float]:
        bits = self.nats_per_token / math.log(2)
        facts = {
            "nats_per_token": self.nats_per_token,
            "stderr": self.stderr,
            "bits_per_token": bits,
            "perplexity": math.exp(min(self.nats_per_token, 700.0)),
        }
        if characters_per_token is not None:
            facts["bits_per_character"] = bits / characters_per_token
        return facts


@dataclass(frozen=True)
class HeldOutLikelihood:
    """What `held_out_likelihood` measured. Rates are in nats per token; lower is better.

    denoiser: the diffusion bound (NELBO), an upper bound of -log p of the sampler without energy.
    sampler: K -> an upper bound of -log p of the sampler with K candidates, as the engine runs it.
    gain: K -> denoiser less sampler, paired: its standard error is that of the difference.
    paper_lower, paper_upper: the paper's estimate with log Z at the lower and the upper side of
        Theorem 1. NOT an upper bound of -log p of any sampler that reveals in parts, however many
        samples: it scores the whole of what is masked jointly. It may fall below the entropy of the
        data.
    log_z_width: upper less lower side, a mean over noisy windows in nats. Where it is not small,
        neither side is to be trusted.
    ess: mean effective size of the `pool` samples behind log Z.
    ar: -log p of the energy's own AR model, exact, over the tokens that it scores.
    """

    windows: int
    length: int
    draws: int
    pool: int
    steps: int | None
    energy_times: tuple[float, float] | None
    denoiser: Rate
    sampler: dict[int, Rate]
    gain: dict[int, Rate]
    paper_lower: Rate | None = None
    paper_upper: Rate | None = None
    log_z_width: float | None = None
    ess: float | None = None
    ar: Rate | None = None
    characters_per_token: float | None = None

    def to_json(self) -> dict[str, Any]:
        """Plain numbers, rates also as bits and perplexity."""

        def plain(value: Any) -> Any:
            if isinstance(value, Rate):
                return value.to_json(self.characters_per_token)
            if isinstance(value, dict):
                return {str(key): plain(each) for key, each in value.items()}
            return value

        return {name: plain(value) for name, value in vars(self).items()}


def held_out_likelihood(
    engine: Engine,
    windows: Tensor,
    *,
    config: GenerationConfig | None = None,
    draws: int = 4,
    pool: int = 16,
    batch_size: int = 8,
    seed: int = 0,
    characters_per_token: float | None = None,
    progress: bool = False,
) -> HeldOutLikelihood:
    """Bounds on -log p of `windows` [W, L] int64, each a whole sequence of its own.

    config: the sampler whose likelihood is meant, by default one position at a time
        (`steps=None`), the continuous-time bound; with N steps, that of the sampler of N steps. Its
        candidates are bounded for every power of 2 up to `num_candidates`.
    draws: noisy windows for each window, at stratified times.
    pool: candidates for log Z of a noisy window, and as many again for the sampler's bound.
    batch_size: noisy windows per call of the denoiser.

    Deterministic for a seed, in any `batch_size` up to the models' rounding. Standard errors are
    over windows, as if these were independent texts. Raises ValueError for windows that do not fit,
    too small a pool, and a sampler under which text can be impossible (top_p < 1, final="argmax").
    """
    config = config or GenerationConfig(steps=None)
    with_energy = engine.energy is not None and config.num_candidates > 1
    _check(engine, windows, config, draws, pool if with_energy else None)
    candidates = _powers_of_two(config.num_candidates) if with_energy else []
    noisy = noisy_windows(
        windows.cpu(),
        engine.schedule,
        config.steps,
        config.energy_times if with_energy else None,
        draws,
        seed,
    )
    terms = all_terms(
        engine, noisy, config, candidates, pool, batch_size=batch_size, progress=progress
    )

    def per_window(values: Tensor) -> Tensor:
        """[W] nats per token, from [G] nats in the step that was looked at."""
        return (noisy.steps * values).view(-1, draws).mean(1) / windows.shape[1]

    denoiser = per_window(terms["denoiser"])
    gains = {k: per_window(terms[f"gain {k}"]) for k in candidates}
    paper: dict[str, Any] = {}
    if with_energy:
        for side in ("lower", "upper"):
            corrected = terms["denoiser"] + terms[f"paper {side}"]
            paper[f"paper_{side}"] = Rate.of(per_window(corrected))
        paper["log_z_width"] = terms["log_z width"].nanmean().item()
        paper["ess"] = terms["ess"].nanmean().item()
    return HeldOutLikelihood(
        windows=len(windows),
        length=windows.shape[1],
        draws=draws,
        pool=pool,
        steps=config.steps,
        energy_times=config.energy_times if with_energy else None,
        denoiser=Rate.of(denoiser),
        sampler={k: Rate.of(denoiser - gain) for k, gain in gains.items()},
        gain={k: Rate.of(gain) for k, gain in gains.items()},
        ar=_ar_rate(engine, windows),
        characters_per_token=characters_per_token,
        **paper,
    )


def _powers_of_two(most: int) -> list[int]:
    """2, 4, 8, .. below `most`, then `most`."""
    return [*(2**i for i in range(1, most.bit_length()) if 2**i < most), most]


def _ar_rate(engine: Engine, windows: Tensor) -> Rate | None:
    """-log p of the AR model behind the energy, if there is one."""
    if not isinstance(engine.energy, ARResidualEnergy):
        return None
    model = engine.energy.model
    with torch.inference_mode():
        log_p = sequence_log_probs(model, windows.to(model.head[0].device)).cpu()
    return Rate.of(-log_p / (windows.shape[1] - model.first_position))


def _check(
    engine: Engine, windows: Tensor, config: GenerationConfig, draws: int, pool: int | None
) -> None:
    if not isinstance(windows, Tensor) or windows.dtype != torch.int64 or windows.dim() != 2:
        got = f"{windows.dtype} {list(windows.shape)}" if isinstance(windows, Tensor) else windows
        raise ValueError(f"windows must be int64 with shape [W, L], got {got}")
    length = min(engine.denoiser.length, getattr(engine.energy, "length", engine.denoiser.length))
    if len(windows) < 2 or not 1 <= windows.shape[1] <= length:
        raise ValueError(
            f"windows must be two at least, of 1 to {length} tokens, got {list(windows.shape)}"
        )
    if config.length not in (None, windows.shape[1]):
        raise ValueError(f"length must be that of windows, {windows.shape[1]}, got {config.length}")
    mask_id, vocab_size = engine.denoiser.mask_id, engine.denoiser.vocab_size
    outside = (windows < 0) | (windows >= vocab_size) | (windows == mask_id)
    if outside.any():
        raise ValueError(
            f"windows must hold tokens in [0, {vocab_size}) other than the mask {mask_id}, "
            f"got {windows[outside][0].item()}"
        )
    if draws < 1:
        raise ValueError(f"draws must be >= 1, got {draws}")
    least = max(2, config.num_candidates - 1)
    if pool is not None and pool < least:
        raise ValueError(
            f"pool must be >= {least} for {config.num_candidates} candidates, got {pool}"
        )
    plain = GenerationConfig()
    for field in fields(config):
        value, default = getattr(config, field.name), getattr(plain, field.name)
        if field.name not in BOUNDED and value != default:
            raise ValueError(
                f"{field.name} must be {default!r} for a bound of the likelihood, got {value!r}"
            )
