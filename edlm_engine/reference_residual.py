"""`residual_draw` of `edlm_engine.reference`: a draft taken, or what comes in its place.

A row's key has a decision about the draft, `TRIES` tries and one last draw. Try i draws a token
from p and keeps it with probability max(0, 1 - q / p), which makes it one of (p - q)+. Where no
try is kept, the last draw is the inverse CDF of (p - q)+; where that is empty (p is q, and what
was refused was possible in neither), the first try's token stands.
"""

import torch
from torch import Tensor

from edlm_engine.reference_law import log_softmax
from edlm_engine.reference_random import check, check_int64, inverse_cdf, random_bits, uniform

RESIDUAL_TAG = 0x52455344
TRIES = 32
DECIDE, DRAW = 0, 1


def residual_draw(
    logits_p: Tensor,
    logits_q: Tensor,
    draft: Tensor,
    keys: Tensor,
    *,
    forbidden_p: int = -1,
    forbidden_q: int = -1,
    temperature_p: float = 1.0,
    temperature_q: float = 1.0,
) -> tuple[Tensor, Tensor, Tensor]:
    """Take `draft` [R] with probability min(1, p / q), else draw from (p - q)+.

    p [R, V] and q [R, V'] are those of `log_softmax`. Returns token [R] int64, accepted [R] bool
    and log p(token) [R] float32.
    """
    log_p = log_softmax(logits_p, forbidden_p, temperature_p, name="logits_p")
    log_q = log_softmax(logits_q, forbidden_q, temperature_q, name="logits_q")
    rows, vocab = log_p.shape
    check(len(log_q) == rows, f"logits_q must have {rows} rows, as logits_p", len(log_q))
    check_int64("draft", draft, rows)
    check_int64("keys", keys, rows)
    outside = (draft < 0) | (draft >= log_q.shape[1])
    if outside.any():
        raise RuntimeError(f"draft row {int(outside.nonzero()[0])} is outside the vocabulary")
    # Tokens that one of them lacks have probability 0 there.
    width = max(vocab, log_q.shape[1])
    log_p, log_q = (
        torch.nn.functional.pad(x, (0, width - x.shape[1]), value=-torch.inf)
        for x in (log_p, log_q)
    )

    def log_ratio(tokens: Tensor) -> Tensor:
        """log p / q of tokens [R, n]: inf where only q is 0, NaN where both are."""
        return log_p.gather(1, tokens) - log_q.gather(1, tokens)

    def uniforms(place: Tensor, use: int) -> Tensor:
        return uniform(random_bits(keys[:, None], place.to(keys.device), use, RESIDUAL_TAG))

    tries = torch.arange(1, TRIES + 1)
    accepted = uniforms(tries[:1] - 1, DECIDE).log() < log_ratio(draft[:, None])
    tried = inverse_cdf(log_p.exp(), uniforms(tries, DRAW))
    kept = uniforms(tries, DECIDE).log() > -log_ratio(tried)
    residual = (log_p.exp() - log_q.exp()).clamp(min=0)
    summed = inverse_cdf(residual, uniforms(tries[-1:] + 1, DRAW))
    last = torch.where(residual.sum(dim=1, keepdim=True) > 0, summed, tried[:, :1])
    first = tried.gather(1, kept.int().argmax(dim=1, keepdim=True))
    redrawn = torch.where(kept.any(dim=1, keepdim=True), first, last)
    token = torch.where(accepted, draft[:, None], redrawn)
    return token[:, 0], accepted[:, 0], log_p.gather(1, token)[:, 0].float()
