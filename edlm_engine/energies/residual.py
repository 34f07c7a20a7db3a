"""The residual energy of an autoregressive model (EDLM-AR and EDLM-coAR)."""

import numpy as np
import torch
from torch import Tensor

from edlm_engine import ops
from edlm_engine.energies.protocol import AutoregressiveModel
from edlm_engine.energies.sums import Summable
from edlm_engine.execution import graphs
from edlm_engine.execution.graphs import call_model
from edlm_engine.execution.upload import upload

# About 40 D bytes of float32 activations each: 250 MB in all for a model with D = 768.
MAX_TOKENS = 8192
# A shorter known prefix, as a part of the length, costs as much apart as it saves.
SHORTEST_PREFIX = 0.25
# Within CUDA graphs, of which each length of the known prefix needs its own.
PREFIX_LENGTHS = 8


class ARResidualEnergy(Summable):
    """EDLM-AR (equation 9): E = -log p_AR(x0) + log_q, so that softmax(-E) is p_AR / p_theta.

    Both terms cover the same positions: from `model.first_position` on. With `carry_over=True`
    (EDLM-coAR) only the positions masked in xt count in log p_AR.

    The model runs on at most `max_tokens` tokens per call (at least one sequence; padding for CUDA
    graphs adds at most an eighth), which bounds the memory of its activations; its logits are never
    materialised. A model with `hidden_after_prefix` scores a long known prefix once for all
    candidates: equal up to rounding.
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

    residual = True

    @property
    def first_position(self) -> int:
        return self.model.first_position

    @property
    def vocab_size(self) -> int:
        return self.model.vocab_size

    @property
    def length(self) -> int:
        return self.model.length

    def energy(
        self,
        x0: Tensor,
        xt: Tensor,
        log_q: Tensor,
        t: Tensor,
        masked: np.ndarray | None = None,
    ) -> Tensor:
        """See `Energy.energy`. Without `masked` the tokens tell, for which CUDA is waited for."""
        if masked is None:
            # A candidate never holds the mask, so it differs from xt exactly where xt is masked.
            masked = (x0 != xt[:, None]).any(dim=1).cpu().numpy()
        parts = max(1, self.max_tokens // max(1, x0.shape[2]))
        sequences, candidates = max(1, parts // x0.shape[1]), min(parts, x0.shape[1])
        log_p = [
            _joined(
                [
                    self._log_p(part, masked[i * sequences : (i + 1) * sequences])
                    for part in some.split(candidates, dim=1)
                ],
                dim=1,
            )
            for i, some in enumerate(x0.split(sequences))
        ]
        return (log_q - _joined(log_p)).float()  # the difference is float64

    __call__ = energy

    def _log_p(self, x0: Tensor, masked: np.ndarray) -> Tensor:
        """log p_AR [b, k] of x0 [b, k, L], masked [b, L], in one call of the model."""
        candidates = x0.shape[1]
        scored = masked.repeat(candidates, axis=0) if self.carry_over else None
        prefix = self._shared_prefix(masked) if candidates > 1 else 0
        if prefix:
            return self._log_p_after(x0, scored, prefix)
        return _log_probs(self.model, x0.flatten(0, 1), scored).view(x0.shape[:2])

    def _shared_prefix(self, masked: np.ndarray) -> int:
        """How many known tokens at the start to score once per sequence, 0 if it does not pay."""
        if not hasattr(self.model, "hidden_after_prefix"):
            return 0
        length = masked.shape[1]
        known = int((~masked.any(axis=0)).cumprod().sum())
        prefix = min(known, length - 1)
        if graphs.in_use():
            prefix -= prefix % max(1, length // PREFIX_LENGTHS)
        worthwhile = prefix >= max(length * SHORTEST_PREFIX, self.first_position + 1)
        return prefix if worthwhile else 0

    def _log_p_after(self, x0: Tensor, scored: np.ndarray | None, prefix: int) -> Tensor:
        known, rest = call_model(self.model, "hidden_after_prefix", x0, prefix)
        scored = None if scored is None else scored[:, prefix:]
        rest = rest.flatten(0, 1), x0[..., prefix:].flatten(0, 1)
        log_p = _sums(self.model, *rest, scored).view(x0.shape[:2])
        if self.carry_over:
            return log_p
        first = self.first_position
        return log_p + _sums(self.model, known[:, first:], x0[:, 0, first:prefix], None)[:, None]


def sequence_log_probs(
    model: AutoregressiveModel, tokens: Tensor, *, max_tokens: int = MAX_TOKENS
) -> Tensor:
    """log p_AR of tokens [n, L], summed over positions from `model.first_position`: [n] float64.

    The model runs on at most `max_tokens` tokens per call.
    """
    parts = max(1, max_tokens // max(1, tokens.shape[1]))
    return torch.cat([_log_probs(model, piece, None) for piece in tokens.split(parts)])


def _log_probs(model: AutoregressiveModel, tokens: Tensor, scored: np.ndarray | None) -> Tensor:
    return _sums(model, call_model(model, "hidden", tokens), tokens, scored, model.first_position)


def _sums(
    model: AutoregressiveModel,
    hidden: Tensor,
    targets: Tensor,
    scored: np.ndarray | None,
    first: int = 0,
) -> Tensor:
    """Log-probabilities of targets [n, l], summed over positions from `first` on, or over those of
    them that are `scored` [n, l]: [n] float64.

    The head runs at summed positions only.
    """
    if scored is None:
        hidden, tokens, starts = hidden[:, first:].flatten(0, 1), targets[:, first:].flatten(), None
    else:
        scored = scored & (np.arange(scored.shape[1]) >= first)
        ends = np.cumsum(scored.sum(axis=1))
        on_host = np.flatnonzero(scored), np.concatenate([[0], ends])
        places, starts = upload(targets.device, *map(torch.from_numpy, on_host))
        hidden = hidden.flatten(0, 1).index_select(0, places)
        tokens = targets.flatten().index_select(0, places)
    weight, bias = model.head
    each = ops.head_token_log_probs(
        hidden, weight, tokens, bias=bias, forbidden_id=model.forbidden_id
    )
    return ops.sum_log_probs(each, len(targets), starts)


def _joined(parts: list[Tensor], dim: int = 0) -> Tensor:
    """The parts along a dimension; a single one is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
