"""Energies E(x0, xt, t) of complete candidates: lower is likelier.

The engine draws K candidates from the denoiser, p_theta(x0 | xt), and keeps one with probability
softmax(-E), which aims at p_theta(x0 | xt) exp(-E) / Z (EDLM, arXiv 2410.21357, equation 7).
"""

from typing import Protocol

import torch
from torch import Tensor

from edlm_engine import ops

# About 40 D bytes of float32 activations each: 250 MB in all for a model with D = 768.
MAX_TOKENS = 8192


class Energy(Protocol):
    """Any callable with this signature is an energy.

    Optional attributes: `first_position` (default 0), the first position that the energy scores:
    the engine leaves the positions before it out of `log_q`; `vocab_size` and `length`, checked
    against those of the denoiser.
    """

    def __call__(self, x0: Tensor, xt: Tensor, log_q: Tensor, t: Tensor) -> Tensor:
        """Energies [B, K] float32.

        x0: complete candidates [B, K, L] int64, equal to xt where xt is not masked.
        xt: noisy tokens [B, L] int64.
        log_q: log-probability [B, K] float32 of the candidate under the distribution it was drawn
            from, summed over the masked positions.
        t: time [B] float32 in (0, 1].
        """
        ...


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
    the memory of its activations; its logits are never materialised. Candidates that the model
    finds impossible get +inf. Raises RuntimeError for a token outside the model's vocabulary.
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

    def __call__(self, x0: Tensor, xt: Tensor, log_q: Tensor, t: Tensor) -> Tensor:
        # A candidate never holds the mask, so it differs from xt exactly where xt is masked.
        scored = (x0 != xt[:, None]).flatten(0, 1) if self.carry_over else None
        log_p = sequence_log_probs(
            self.model, x0.flatten(0, 1), scored=scored, max_tokens=self.max_tokens
        )
        return (log_q.double() - log_p.view_as(log_q)).float()


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
    hidden, targets = model.hidden(tokens)[:, first:], tokens[:, first:]
    if scored is None:
        return (
            _head_log_probs(model, hidden.flatten(0, 1), targets.flatten()).view_as(targets).sum(1)
        )
    sequence, position = scored[:, first:].nonzero(as_tuple=True)
    log_probs = _head_log_probs(model, hidden[sequence, position], targets[sequence, position])
    return log_probs.new_zeros(len(tokens)).index_add_(0, sequence, log_probs)


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
