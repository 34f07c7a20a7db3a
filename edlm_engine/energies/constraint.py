"""Constraints as energies: a predicate or a pattern, and how often tokens occur."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from numbers import Real
from typing import Any, Literal

import torch
from torch import Tensor

from edlm_engine.energies.per_candidate import MAX_CANDIDATES, CandidateFunction
from edlm_engine.energies.sums import Summable

# More than candidates differ by in other energies as a rule; a sum of float32 near it is still good
# to 6e-5.
PENALTY = 1000.0


class ConstraintEnergy(Summable):
    """E = 0 where a candidate keeps the constraint, `penalty` where it breaks it.

    holds: a function giving n truth values for token ids [n, L], or for n texts decoded by
        `tokenizer` (`on="text"`); or a regular expression that must match the whole decoded text
        (`re.fullmatch`; a compiled one has its flags). Known tokens are included.
    penalty: in nats. With a finite one a step always has a choice: among candidates that all break
        it, by whatever else is in the sum, else uniformly; one that keeps it is e^penalty as likely
        as one that breaks it. math.inf makes those impossible, and a step in which all K are
        ends the generation with a RuntimeError.

    `log_q` is not used: the target is p_theta(x0 | xt) given that the constraint holds, in so far
    as K candidates find it.
    """

    def __init__(
        self,
        holds: str | re.Pattern[str] | Callable[..., Any],
        *,
        penalty: float = PENALTY,
        on: Literal["tokens", "text"] | None = None,
        tokenizer: Any = None,
        max_candidates: int = MAX_CANDIDATES,
    ):
        self.penalty = check_penalty(penalty)
        if isinstance(holds, (str, re.Pattern)):
            if on == "tokens":
                raise ValueError("on must be \"text\" for a regular expression, got 'tokens'")
            holds, on = Matches(holds), "text"
        self.holds = CandidateFunction(holds, on or "tokens", tokenizer, max_candidates)

    def energy(self, x0: Tensor, xt: Tensor, log_q: Tensor, t: Tensor) -> Tensor:
        """See `Energy.energy`."""
        kept = self.holds(x0)
        if kept.dtype != torch.bool or kept.shape != log_q.shape:
            got = f"{str(kept.dtype).removeprefix('torch.')} {[log_q.numel(), *kept.shape[2:]]}"
            raise TypeError(f"holds must return truth values [{log_q.numel()}], got {got}")
        return torch.zeros_like(log_q).masked_fill_(~kept, self.penalty)

    __call__ = energy


class Matches:
    """Texts [n] -> whether a pattern matches the whole of each."""

    def __init__(self, pattern: str | re.Pattern[str]):
        try:
            self.pattern = re.compile(pattern)
        except re.error as error:
            raise ValueError(f"holds must be a regular expression, {pattern!r}: {error}") from None

    def __call__(self, texts: list[str]) -> list[bool]:
        return [self.pattern.fullmatch(text) is not None for text in texts]


class TokenCountEnergy(Summable):
    """E = `penalty` for each occurrence of a token that is missing or too many.

    counts: {token: how often it must occur in the sequence, or (low, high)}; high may be None, no
        limit. Known tokens count.
    penalty: in nats, finite, or math.inf as in `ConstraintEnergy`. A finite one makes those
        candidates likely that come nearest, so that counts are reached step by step.

    `log_q` is not used.
    """

    def __init__(
        self,
        counts: Mapping[int, int | tuple[int, int | None]],
        *,
        penalty: float = PENALTY,
    ):
        self.penalty = check_penalty(penalty)
        if not isinstance(counts, Mapping) or not counts:
            raise TypeError(f"counts must be a dict of tokens and counts, got {counts!r}")
        self.ranges = {
            _checked("tokens of counts", token): _range(count) for token, count in counts.items()
        }

    def energy(self, x0: Tensor, xt: Tensor, log_q: Tensor, t: Tensor) -> Tensor:
        """See `Energy.energy`."""
        away = torch.zeros(x0.shape[:2], dtype=torch.int64, device=x0.device)
        for token, (low, high) in self.ranges.items():
            found = (x0 == token).sum(dim=2)
            away += (low - found).clamp(min=0)
            if high is not None:
                away += (found - high).clamp(min=0)
        # 0 times inf would be no number.
        return torch.where(away > 0, away * self.penalty, 0.0).float()

    __call__ = energy


def check_penalty(penalty: Any) -> float:
    """A number above 0, +inf allowed; TypeError or ValueError."""
    if isinstance(penalty, bool) or not isinstance(penalty, Real):
        raise TypeError(f"penalty must be of type float, got {penalty!r}")
    value = float(penalty)
    if not value > 0:
        raise ValueError(f"penalty must be > 0, got {penalty}")
    return value


def _range(count: Any) -> tuple[int, int | None]:
    low, high = count if isinstance(count, (tuple, list)) and len(count) == 2 else (count, count)
    low = _checked("counts", low)
    high = None if high is None else _checked("counts", high)
    if high is not None and low > high:
        raise ValueError(f"counts must be (low, high) with low <= high, got {count!r}")
    return low, high


def _checked(name: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{name} must be of type int, or pairs of them, got {value!r}")
    if value < 0:
        raise ValueError(f"{name} must be >= 0, got {value}")
    return value
