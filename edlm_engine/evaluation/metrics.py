"""Quality of samples and of importance weights."""

import torch
from torch import Tensor

from edlm_engine.energies.protocol import AutoregressiveModel
from edlm_engine.energies.residual import MAX_TOKENS, sequence_log_probs


def effective_sample_size(log_weights: Tensor, dim: int = -1) -> Tensor:
    """(sum w)^2 / sum w^2 over `dim` of n log-weights: float64 in [1, n].

    1: one weight has everything; n: all are equal. NaN where no weight is finite or one is NaN.
    """
    log_weights = log_weights.double()
    # Centred on the largest, so that doubling cannot cost digits.
    log_weights = log_weights - log_weights.amax(dim, keepdim=True)
    weights = log_weights.exp()
    return weights.sum(dim) ** 2 / (weights**2).sum(dim)


def token_entropy(tokens: Tensor) -> Tensor:
    """Entropy in nats of each sequence's own token frequencies: tokens [B, L] -> [B] float64.

    From 0, one token repeated, to log L, all different. Low values beside a good generative
    perplexity mean repetition.
    """
    if tokens.dim() != 2 or tokens.shape[1] < 1:
        raise ValueError(f"tokens must have shape [B, L], L >= 1, got {list(tokens.shape)}")
    ordered = tokens.sort(dim=1).values
    counts = torch.searchsorted(ordered, ordered, right=True) - torch.searchsorted(ordered, ordered)
    # Each position carries 1 / L of the mass, so the mean over positions is the entropy.
    return torch.log(tokens.shape[1] / counts.double()).mean(dim=1)


def repetition(tokens: Tensor, n: int) -> Tensor:
    """Share of each sequence's n-grams that repeat an earlier one: tokens [B, L] -> [B] float64.

    1 less the number of different n-grams over the number of n-grams, L - n + 1. 0 where none is
    said twice. Raises ValueError unless 1 <= n <= L.
    """
    grams = _ngrams(tokens, n)
    different = torch.tensor([len(row.unique(dim=0)) for row in grams], dtype=torch.float64)
    return 1 - different / grams.shape[1]


def distinct(tokens: Tensor, n: int) -> float:
    """Different n-grams of all sequences [B, L] together, over their number: in (0, 1].

    It falls as B grows, so compare it at equal B and L only.
    """
    grams = _ngrams(tokens, n).flatten(0, 1)
    return len(grams.unique(dim=0)) / len(grams)


def _ngrams(tokens: Tensor, n: int) -> Tensor:
    """[B, L - n + 1, n]."""
    if tokens.dim() != 2 or not len(tokens) or not 1 <= n <= tokens.shape[1]:
        raise ValueError(
            f"tokens must have shape [B, L], B >= 1, L >= {n}, n >= 1, got {list(tokens.shape)}"
        )
    return tokens.unfold(1, n, 1)


@torch.inference_mode()
def generative_perplexity(
    sequences: Tensor, model: AutoregressiveModel, *, max_tokens: int = MAX_TOKENS
) -> float:
    """exp of the mean negative log p_AR per scored token of sequences [B, L] int64.

    All tokens of all sequences weigh the same; those before `model.first_position` are not scored.
    Report it together with `token_entropy`. The model sees at most `max_tokens` tokens per call.
    """
    scored = sequences.shape[-1] - model.first_position
    if sequences.dim() != 2 or len(sequences) < 1 or scored < 1:
        raise ValueError(
            f"sequences must have shape [B, L], B >= 1, L > {model.first_position}, "
            f"got {list(sequences.shape)}"
        )
    log_probs = sequence_log_probs(model, sequences, max_tokens=max_tokens)
    return float(torch.exp(-log_probs.mean() / scored))
