"""The op of speculative sampling; part of `edlm_engine.ops`."""

from __future__ import annotations

import torch
from torch import Tensor

import edlm_engine.op_rules  # noqa: F401  # loads the library


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
    """Take ``draft [R]`` with probability min(1, p / q), else draw from (p - q)+ in its place.

    p is ``softmax(logits_p / temperature_p)`` of ``logits_p [R, V]`` without the token
    ``forbidden_p`` (-1 for none), q likewise. If a row's draft was drawn from its q, the returned
    token is drawn from p, whatever q is: speculative sampling (Leviathan et al., ICML 2023; Chen et
    al., 2023). ``draft`` and ``keys [R]`` are int64, both matrices have one dtype, and their
    vocabularies may differ in size: a token that one lacks has probability 0 there.

    Returns ``token [R]`` int64, ``accepted [R]`` bool (the token is the draft, taken as it came)
    and ``log_p [R]`` float32, the token's log-probability under p. A draft of q = 0 is taken if
    p > 0, one of p = 0 never is, and where p is q every draft is.

    Cost: one read of both rows. A redraw takes tokens from p, each kept with probability
    (1 - q / p)+, out of sums that the read has left; rows whose first 32 are all thrown away (at
    most one in 80 if drafts come from q) are read once more. Rounding moves
    the law of a token by about 1e-7 of its probability over that of a refusal: where p and q agree
    so well that nearly nothing is refused, what little then is drawn may be rounding, but never a
    token of p = 0.

    A draft outside q's vocabulary raises ``RuntimeError`` on CPU, as bad rows of either do; on CUDA
    all of these yield token -1, False and ``log_p`` NaN. There is no gradient.
    """
    return torch.ops.edlm.residual_draw(
        logits_p, logits_q, draft, keys, forbidden_p, forbidden_q, temperature_p, temperature_q
    )
