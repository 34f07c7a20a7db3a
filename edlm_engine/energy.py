"""Energies E(x0, xt, t) of complete candidates: lower is likelier.

The engine draws K candidates from the denoiser, p_theta(x0 | xt), and keeps one with probability
softmax(-E), which aims at p_theta(x0 | xt) exp(-E) / Z (EDLM, arXiv 2410.21357, equation 7).
"""

from collections.abc import Callable
from typing import Protocol

import torch
from torch import Tensor

from edlm_engine import ops

# About 40 D bytes of float32 activations each: 250 MB in all for a model with D = 768.
MAX_TOKENS = 8192
# A shorter known prefix, as a part of the length, costs as much apart as it saves.
SHORTEST_PREFIX = 0.25


class Energy(Protocol):
    """An object with this method, or any callable with its signature, is an energy.

    Optional attributes: `first_position` (default 0), the first position that the energy scores:
    the engine leaves the positions before it out of `log_q`; `vocab_size` and `length`, checked
    against those of the denoiser.
    """

    def energy(self, x0: Tensor, xt: Tensor, log_q: Tensor, t: Tensor) -> Tensor:
        """Energies [B, K] float32.

        x0: complete candidates [B, K, L] int64, equal to xt where xt is not masked. The engine
            fills the same buffer anew at the next step.
        xt: noisy tokens [B, L] int64.
        log_q: log-probability [B, K] float32 of the candidate under the distribution it was drawn
            from, summed over the masked positions.
        t: time [B] float32 in (0, 1].
        """
        ...


def energy_function(energy: Energy | Callable) -> Callable:
    """What to call: the method `energy` of objects whose class has it, else the object itself."""
    has_method = hasattr(type(energy), "energy") or not callable(energy)
    return energy.energy if has_method else energy


class AutoregressiveModel(Protocol):
    """What `ARResidualEnergy` and `generative_perplexity` ask of a left-to-right model."""

    vocab_size: int
    length: int
    first_position: int  # the first position whose token is scored: 0 with a BOS, else 1
    forbidden_id: int  # a token that is never emitted, -1 for none
    head: tuple[Tensor, Tensor | None]  # weight [V, D], bias [V]

    def hidden(self, tokens: Tensor) -> Tensor:
        """tokens [n, L] -> [n, L, D]; row l of a sequence predicts its token l."""
        ...


class ARResidualEnergy:
    """EDLM-AR (equation 9): E = -log p_AR(x0) + log_q, so that softmax(-E) is p_AR / p_theta.

    Both terms cover the same positions: from `model.first_position` on. With `carry_over=True`
    (EDLM-coAR) only the positions masked in xt count in log p_AR; that number of positions is read
    from the tokens, so each call then waits for the device once.

    The model runs on at most `max_tokens` tokens per call (at least one sequence), which bounds
    the memory of its activations; its logits are never materialised. On the CPU a model with
    `hidden_after_prefix` scores a long known prefix once for all candidates: equal up to rounding.
    Candidates that the model finds impossible get +inf. Raises RuntimeError for a token outside the
    model's vocabulary.
    """

    def __init__(
        self, model: AutoregressiveModel, carry_over: bool = False, *, max_tokens: int = MAX_TOKENS
    ):
        if max_tokens < 1:
            raise ValueError(f"max_tokens must be >= 1, got {max_tokens}")
        self.model = model
        self.carry_over = carry_over
        self.max_tokens = max_tokens

    @property
    def first_position(self) -> int:
        return self.model.first_position

    @property
    def vocab_size(self) -> int:
        return self.model.vocab_size

    @property
    def length(self) -> int:
        return self.model.length

    def energy(self, x0: Tensor, xt: Tensor, log_q: Tensor, t: Tensor) -> Tensor:
        """See `Energy.energy`."""
        # A candidate never holds the mask, so it differs from xt exactly where xt is masked.
        masked = (x0 != xt[:, None]).any(dim=1)
        parts = max(1, self.max_tokens // max(1, x0.shape[2]))
        sequences, candidates = max(1, parts // x0.shape[1]), min(parts, x0.shape[1])
        log_p = [
            torch.cat([self._log_p(part, drawn) for part in some.split(candidates, dim=1)], dim=1)
            for some, drawn in zip(x0.split(sequences), masked.split(sequences), strict=True)
        ]
        return (log_q.double() - torch.cat(log_p)).float()

    __call__ = energy

    def _log_p(self, x0: Tensor, masked: Tensor) -> Tensor:
        """log p_AR [b, k] of x0 [b, k, L], in one call of the model."""
        prefix = self._shared_prefix(masked) if x0.shape[1] > 1 else 0
        if prefix:
            return self._log_p_after(x0, masked, prefix)
        scored = masked[:, None].expand_as(x0).flatten(0, 1) if self.carry_over else None
        return _log_probs(self.model, x0.flatten(0, 1), scored).view(x0.shape[:2])

    def _shared_prefix(self, masked: Tensor) -> int:
        """How many known tokens at the start to score once per sequence, 0 if it does not pay."""
        # Elsewhere the answer would have to be waited for.
        if masked.device.type != "cpu" or not hasattr(self.model, "hidden_after_prefix"):
            return 0
        length = masked.shape[1]
        known = int((~masked.any(dim=0)).cumprod(dim=0).sum())
        prefix = min(known, length - 1)
        worthwhile = prefix >= max(length * SHORTEST_PREFIX, self.first_position + 1)
        return prefix if worthwhile else 0

    def _log_p_after(self, x0: Tensor, masked: Tensor, prefix: int) -> Tensor:
        known, rest = self.model.hidden_after_prefix(x0, prefix)
        scored = masked[:, None, prefix:].expand(-1, x0.shape[1], -1) if self.carry_over else None
        rest = rest.flatten(0, 1), x0[..., prefix:].flatten(0, 1)
        log_p = _sums(self.model, *rest, scored if scored is None else scored.flatten(0, 1))
        log_p = log_p.view(x0.shape[:2])
        if self.carry_over:
            return log_p
        first = self.first_position
        return log_p + _sums(self.model, known[:, first:], x0[:, 0, first:prefix], None)[:, None]


def sequence_log_probs(
    model: AutoregressiveModel,
    tokens: Tensor,
    *,
    scored: Tensor | None = None,
    max_tokens: int = MAX_TOKENS,
) -> Tensor:
    """log p_AR of tokens [n, L], summed over positions from `model.first_position`: [n] float64.

    `scored` [n, L] bool restricts the sum to some positions. The head runs at summed positions
    only, and the model on at most `max_tokens` tokens per call.
    """
    parts = max(1, max_tokens // max(1, tokens.shape[1]))
    pieces = tokens.split(parts)
    masks = (None,) * len(pieces) if scored is None else scored.split(parts)
    return torch.cat([_log_probs(model, *piece) for piece in zip(pieces, masks, strict=True)])


def _log_probs(model: AutoregressiveModel, tokens: Tensor, scored: Tensor | None) -> Tensor:
    first = model.first_position
    scored = None if scored is None else scored[:, first:]
    return _sums(model, model.hidden(tokens)[:, first:], tokens[:, first:], scored)


def _sums(
    model: AutoregressiveModel, hidden: Tensor, targets: Tensor, scored: Tensor | None
) -> Tensor:
    """Log-probabilities of targets [n, l], summed over l, or over `scored` [n, l]: [n] float64."""
    if scored is None:
        each = _head_log_probs(model, hidden.flatten(0, 1), targets.flatten())
        return each.view_as(targets).sum(1)
    sequence, position = scored.nonzero(as_tuple=True)
    each = _head_log_probs(model, hidden[sequence, position], targets[sequence, position])
    return each.new_zeros(len(targets)).index_add_(0, sequence, each)


def _head_log_probs(model: AutoregressiveModel, hidden: Tensor, targets: Tensor) -> Tensor:
    weight, bias = model.head
    return on_grid(
        ops.head_token_log_probs(
            hidden, weight, targets, bias=bias, forbidden_id=model.forbidden_id
        )
    )


def on_grid(log_probs: Tensor) -> Tensor:
    """Log-probabilities rounded to multiples of 2^-30, in float64.

    Up to 2^23 nats such numbers add without rounding, so a sum of them does not depend on the order
    of its terms, and a sequence's score not on the batch or the number of threads.
    """
    return torch.round(log_probs.double() * 2.0**30) * 2.0**-30
