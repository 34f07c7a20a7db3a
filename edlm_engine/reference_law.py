"""The law that the sampling ops draw from, in float64: its log-probabilities and statistics."""

import math

import torch
from torch import Tensor

from edlm_engine.reference_random import check

TEMPERATURES = (1e-30, 1e30)


def log_softmax(
    logits: Tensor,
    forbidden_id: int = -1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    *,
    name: str = "logits",
) -> Tensor:
    """Float64 log-probabilities [R, V] of the law that the sampling ops draw from.

    softmax(logits / temperature) over all tokens but `forbidden_id` (-1: none), cut three times.
    Each cut renormalises what the one before it left, and keeps tokens by their logits:
    `top_k` (0: all) those at or above the `top_k`-th largest; `top_p` those at or above the last
    that the descending cumulative sum needs to reach `top_p`; `min_p` those whose probability is at
    least `min_p` times the largest. Excluded tokens get -inf.
    """
    check(logits.dim() == 2, f"{name} must have shape [R, V]", list(logits.shape))
    vocab = logits.shape[1]
    check(vocab >= 1, f"{name} must have V >= 1", vocab)
    check(-1 <= forbidden_id < vocab, f"forbidden_id must be in [-1, {vocab})", forbidden_id)
    least, most = TEMPERATURES
    check(least <= temperature <= most, f"temperature must be in [{least}, {most}]", temperature)
    check(0 < top_p <= 1, "top_p must be in (0, 1]", top_p)
    check(top_k >= 0, "top_k must be at least 1, or 0 for none", top_k)
    check(0 <= min_p <= 1, "min_p must be in [0, 1]", min_p)
    scores = logits.double().clone()
    if forbidden_id >= 0:
        scores[:, forbidden_id] = -torch.inf
    check_rows(scores, name)
    # The largest score becomes 0 before the division: no temperature, however small, overflows.
    gaps = (scores - scores.amax(dim=1, keepdim=True)) / temperature
    log_probs = torch.log_softmax(gaps, dim=1)
    # By logits: at a high temperature those that differ may round to one probability.
    descending, order = scores.sort(dim=1, descending=True)

    def cut(outside: Tensor) -> Tensor:
        return torch.log_softmax(log_probs.masked_fill(outside, -torch.inf), dim=1)

    if 0 < top_k < vocab:
        log_probs = cut(scores < descending[:, top_k - 1 : top_k])
    if top_p < 1:
        reached = log_probs.exp().gather(1, order).cumsum(dim=1)
        needed = (reached < top_p).sum(dim=1, keepdim=True).clamp(max=vocab - 1)
        log_probs = cut(scores < descending.gather(1, needed))
    if min_p > 0:
        log_probs = cut(gaps < math.log(min_p))
    return log_probs


def law_statistics(log_probs: Tensor) -> Tensor:
    """Of laws [R, V]: entropy in nats, and the two largest log-probabilities, [R, 3] float32.

    -inf where there is no second token.
    """
    entropy = torch.special.entr(log_probs.exp()).sum(dim=1, keepdim=True)
    second = torch.full_like(entropy, -torch.inf)
    return torch.cat((entropy, torch.cat((log_probs, second), dim=1).topk(2).values), 1).float()


def check_rows(values: Tensor, name: str) -> None:
    bad = (values.isnan() | values.isposinf()).any(dim=1)
    if bad.any():
        raise RuntimeError(f"{name} row {int(bad.nonzero()[0])} holds NaN or +inf")
    empty = values.isneginf().all(dim=1)
    if empty.any():
        raise RuntimeError(
            f"{name} row {int(empty.nonzero()[0])} allows nothing: every entry is -inf"
        )
