"""What the engine is compared with: other ways to do the same work, in plain PyTorch.

The released sampler is restated from its published description, faults included: they are what the
comparison, and the many-tail test, are about.
"""

import torch
from torch import Tensor


def released_race(probs: Tensor, num_samples: int = 1) -> Tensor:
    """The exponential race of the MDLM and EDLM code: argmax of probs over -log(uniform).

    ``probs [..., V]`` in any float dtype; returns ``[num_samples * first, ...]``, all of sample 0
    first. The uniforms have the dtype of ``probs``: in float32 they end at 1 - 2^-24, so a token
    some 17 nats below the best can hardly win; in bfloat16 they have 8 significant bits.
    """
    if num_samples > 1:
        probs = probs.repeat(num_samples, *(1 for _ in probs.shape[1:]))
    race = 1e-10 - (torch.rand_like(probs) + 1e-10).log()
    return (probs / race).argmax(dim=-1)


def released_candidates(logits: Tensor, num_candidates: int, forbidden_id: int) -> Tensor:
    """Released route from ``logits [R, V]`` to ``tokens [R, K]``: mask, normalise, exp, race."""
    logits = logits.clone()
    logits[:, forbidden_id] -= 1e6
    probs = (logits - torch.logsumexp(logits, dim=-1, keepdim=True)).exp()
    return released_race(probs, num_candidates).view(num_candidates, -1).T


def softmax_multinomial(
    logits: Tensor, num_candidates: int, forbidden_id: int
) -> tuple[Tensor, Tensor]:
    """Plain PyTorch: softmax, ``torch.multinomial`` with replacement, and the drawn log-probs."""
    logits = logits.clone()
    logits[:, forbidden_id] = -torch.inf
    probs = torch.softmax(logits.float(), dim=-1)
    tokens = torch.multinomial(probs, num_candidates, replacement=True)
    return tokens, probs.gather(1, tokens).log()


def log_softmax_gather(logits: Tensor, targets: Tensor) -> Tensor:
    """Plain PyTorch: the whole log-softmax, then one number of each row."""
    return torch.log_softmax(logits.float(), dim=-1).gather(1, targets[:, None])[:, 0]
