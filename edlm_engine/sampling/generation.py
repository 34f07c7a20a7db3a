"""What a generation gives back."""

from __future__ import annotations

from dataclasses import dataclass
from textwrap import shorten

from torch import Tensor

from edlm_engine.sampling.record import Record


@dataclass(frozen=True, repr=False)
class Generation:
    """What `Engine.generate` returns; tensors are on the denoiser's device.

    Energy steps count up per sequence: column s of `ess` and `log_z` is a sequence's own s-th one,
    NaN where it had fewer than S, the most of any sequence.
    """

    sequences: Tensor  # [B, L] int64
    texts: list[str] | None  # decoded sequences, up to an EOS; None without a tokenizer
    seeds: Tensor  # [B] int64: given back as `seed`, they repeat the sequences
    nfe: Tensor  # [B] int64: denoiser evaluations
    energy_evaluations: Tensor  # [B] int64: candidates scored
    ess: Tensor  # [B, S] float32 in [1, K]: effective sample size (sum w)^2 / sum w^2
    log_z: Tensor  # [B, S] float32: log of the mean weight, Theorem 1's estimate of log Z
    particles: Tensor | None = None  # [B, K, L] int64: with the correction "smc"
    log_weights: Tensor | None = None  # [B, K] float64: of the particles
    record: Record | None = None  # with `GenerationConfig.record`

    def __repr__(self) -> str:
        """What there is, in a few lines: tensors by their shape, the first text by its start."""
        shapes = ", ".join(
            f"{name} {list(value.shape)}"
            for name, value in vars(self).items()
            if isinstance(value, Tensor)
        )
        first = f",\n  texts[0] {shorten(self.texts[0], 80)!r}" if self.texts else ""
        return f"Generation({shapes}{first})"
