"""What a sampler asks of the models, counted where they are called."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from edlm_engine import ARResidualEnergy
from edlm_engine.evaluation.settings import Drawn

Sampler = Callable[[Any, Any, Tensor, Sequence[int]], Any]


class Counted:
    """A model, with the calls, sequences and positions of it counted."""

    METHODS = ("hidden", "logits", "hidden_after_prefix", "hidden_step")

    def __init__(self, model: Any):
        self.model = model
        self.calls = self.sequences = self.positions = 0

    def __getattr__(self, name: str) -> Any:
        value = getattr(self.model, name)
        return self._counting(name, value) if name in self.METHODS else value

    def _counting(self, name: str, method: Callable) -> Callable:
        def call(tokens: Tensor, *rest: Any) -> Any:
            self.calls += 1
            length = tokens.shape[-1]
            rows = tokens.numel() // length
            if name == "hidden_after_prefix":  # tokens [b, K, L], the prefix once for all K
                (prefix,) = rest
                self.positions += len(tokens) * prefix + rows * (length - prefix)
                self.sequences += rows
            elif name == "hidden_step":  # the part of a pass that so many positions are
                *_, count = rest
                self.positions += rows * count
                self.sequences += rows * count / length
            else:
                self.positions += tokens.numel()
                self.sequences += rows
            return method(tokens, *rest)

        return call


@dataclass(frozen=True)
class Work(Drawn):
    """What a sampler drew, and what it took.

    `nfe` and `energy_evaluations` [B] are whole sequences through the denoiser and the AR model.
    depth, ar_depth: calls one after the other, of the batch. positions: [B], through either model.
    """

    depth: int = 0
    ar_depth: int = 0
    positions: Tensor | None = None


@torch.inference_mode()
def counted(
    sampler: Sampler, denoiser: Any, energy: Any, canvas: Tensor, seeds: Sequence[int]
) -> Work:
    """What the sampler makes of the canvas. Raises ValueError if known tokens changed, or any is
    missing."""
    watched, ar, scores = Counted(denoiser), None, energy
    if isinstance(energy, ARResidualEnergy):
        ar = Counted(energy.model)
        # One call for all candidates, however many: calls count what must follow each other.
        scores = ARResidualEnergy(ar, energy.carry_over, max_tokens=1 << 30)
    found = sampler(watched, scores, canvas.clone(), seeds)
    claimed = found[1:] if isinstance(found, tuple) else None
    tokens = found[0] if isinstance(found, tuple) else found
    _check(tokens, canvas, denoiser.mask_id)
    size = len(canvas)

    def each(number: Any) -> Tensor:
        return torch.as_tensor(number, dtype=torch.float64).expand(size)

    if claimed is None:
        sequences, positions = (0, 0) if ar is None else (ar.sequences, ar.positions)
        claimed = (
            watched.sequences / size,
            sequences / size,
            (watched.positions + positions) / size,
        )
    nfe, passes, positions = map(each, claimed)
    return Work(
        tokens,
        nfe,
        passes,
        depth=watched.calls,
        ar_depth=0 if ar is None else ar.calls,
        positions=positions,
    )


def _check(tokens: Any, canvas: Tensor, mask_id: int) -> None:
    if not isinstance(tokens, Tensor) or tokens.shape != canvas.shape:
        got = tuple(tokens.shape) if isinstance(tokens, Tensor) else type(tokens).__name__
        raise ValueError(f"a sampler must return tokens {tuple(canvas.shape)}, got {got}")
    known = canvas != mask_id
    if not torch.equal(tokens[known], canvas[known]):
        raise ValueError("a sampler must keep the known tokens of its canvas")
    if (tokens == mask_id).any():
        raise ValueError("a sampler must leave no position masked")
