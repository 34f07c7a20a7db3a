"""Functions of single candidates, given as tokens or as text."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor

# Of a call: bounds the memory of a classifier's activations.
MAX_CANDIDATES = 64


class CandidateFunction:
    """A function that says something of each candidate, called on the candidates of a step.

    fn: of token ids [n, L] int64 on the denoiser's device, or of n texts, `tokenizer.decode` of
        each as in `Generation.texts`. What it says of a candidate must not depend on the others
        beside it, or a sequence is another in another batch.
    max_candidates: the largest n of a call.

    On CUDA texts wait for the device, and so do numbers that come back on the host.
    """

    def __init__(
        self, fn: Callable, on: Literal["tokens", "text"], tokenizer: Any, max_candidates: int
    ):
        if not callable(fn):
            raise TypeError(f"fn must be callable, got {type(fn).__name__}")
        if on not in ("tokens", "text"):
            raise ValueError(f'on must be "tokens" or "text", got {on!r}')
        if on == "text" and not hasattr(tokenizer, "decode"):
            got = type(tokenizer).__name__
            raise TypeError(f'tokenizer must have a method decode, for on="text", got {got}')
        if isinstance(max_candidates, bool) or not isinstance(max_candidates, int):
            raise TypeError(f"max_candidates must be of type int, got {max_candidates!r}")
        if max_candidates < 1:
            raise ValueError(f"max_candidates must be >= 1, got {max_candidates}")
        self.fn, self.on, self.tokenizer = fn, on, tokenizer
        self.max_candidates = max_candidates

    def __call__(self, x0: Tensor) -> Tensor:
        """What it says of the candidates x0 [B, K, L]: [B, K, ...], on their device."""
        tokens = x0.flatten(0, 1)
        said = [self._call(part) for part in tokens.split(self.max_candidates)]
        whole = said[0] if len(said) == 1 else torch.cat(said)
        return whole.unflatten(0, x0.shape[:2])

    def _call(self, tokens: Tensor) -> Tensor:
        given: Tensor | list[str] = tokens.clone()  # a function that writes into it changes nothing
        if self.on == "text":
            given = [self.tokenizer.decode(ids) for ids in tokens.tolist()]
        said = as_tensor(self.fn(given))
        if said.dim() == 0 or len(said) != len(tokens):
            raise ValueError(
                f"fn must return one entry for each of {len(tokens)} candidates, "
                f"got shape {list(said.shape)}"
            )
        return said.to(tokens.device)


def as_tensor(said: Tensor | Sequence) -> Tensor:
    """A tensor, an array or a list as a tensor; TypeError if it is neither."""
    try:
        return torch.as_tensor(said)
    except (TypeError, ValueError, RuntimeError) as error:
        raise TypeError(
            f"fn must return a tensor, an array or a list of numbers, got {type(said).__name__}"
        ) from error


def check_scale(scale: Any) -> float:
    """A finite number; TypeError or ValueError."""
    if isinstance(scale, bool) or not isinstance(scale, Real):
        raise TypeError(f"scale must be of type float, got {scale!r}")
    if not math.isfinite(scale):
        raise ValueError(f"scale must be finite, got {scale}")
    return float(scale)
