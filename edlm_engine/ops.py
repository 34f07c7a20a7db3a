"""The ops of the engine, on CPU and CUDA tensors.

One function per op, each with its specification and oracle under the same name in
:mod:`edlm_engine.reference`. Symbols: ``R`` rows, ``V`` vocabulary, ``K`` candidates, ``B``
sequences, ``L`` length, ``D`` hidden size. Logits may be float32, bfloat16 or float16, with any row
stride and a contiguous last dimension; tokens and keys are int64; log-probabilities are float32 and
never positive.

Randomness is addressed: a draw is a pure function of its key (:func:`stream_keys`) and its index,
the same on every device, for any batch, thread count, stride or K. Every draw is the inverse CDF in
token order at one 52-bit uniform, so sampled frequencies follow the probabilities into the far
tail.

Bad numbers. On CPU a row that holds NaN or +inf at an allowed token, or allows nothing, raises
``RuntimeError`` naming the row. On CUDA, which must not wait for the host, such a row yields token
-1 and log-probability NaN.

Temperatures lie in [1e-30, 1e30]. Gradients: :func:`token_log_probs` has one with respect to its
logits. Nothing else has: a backward pass through ``sample_candidates`` or ``resample`` raises
``RuntimeError``, and so do the ``head_*`` ops where an operand requires grad and grad mode is on.

A process that is forked after an op ran on several threads hangs at its next parallel op, as with
torch's own ops: start worker processes by "spawn", or before the first call.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, overload

import torch
from torch import Tensor

import edlm_engine.op_rules  # noqa: F401  # loads the library
from edlm_engine.arrays import signed_word
from edlm_engine.head_rows import (  # noqa: F401
    HEAD_WORKSPACE_BYTES,
    head_rows,
    head_workspace,
    one_head_workspace,
)
from edlm_engine.residual_ops import residual_draw  # noqa: F401
from edlm_engine.step_ops import place_candidates, reveal_chosen, sum_log_probs  # noqa: F401
from edlm_engine.weight_ops import sample_weights  # noqa: F401


def stream_keys(seeds: Tensor | int, *coordinates: Tensor | int) -> Tensor:
    """Addresses of random streams: ``seeds`` with each coordinate folded in, from left to right.

    Seeds and coordinates are int64 tensors or ints and broadcast together; the result is int64 of
    the broadcast shape. ``stream_keys(stream_keys(s, a), b)`` is not ``stream_keys(s, a, b)``: the
    place of a coordinate is part of the address. Philox4x32-10.
    """
    tensors = [x for x in (seeds, *coordinates) if isinstance(x, Tensor)]
    device = tensors[0].device if tensors else None
    for what, x in zip(
        ("seeds", *(f"coordinate {i}" for i in range(len(coordinates)))),
        (seeds, *coordinates),
        strict=True,
    ):
        if isinstance(x, Tensor) and x.dtype != torch.int64:
            raise ValueError(f"{what} must be int64 or an int, got {x.dtype} {list(x.shape)}")
    first, *others = torch.broadcast_tensors(
        *(
            x
            if isinstance(x, Tensor)
            # Unlike torch.tensor, a fill does not wait for a CUDA device.
            else torch.full((), signed_word(x), dtype=torch.int64, device=device)
            for x in (seeds, *coordinates)
        )
    )
    if not others:
        return first.clone()
    folded = torch.ops.edlm.stream_keys(
        first.reshape(-1), torch.stack([other.reshape(-1) for other in others], dim=1)
    )
    return folded.reshape(first.shape)


@overload
def sample_candidates(
    logits: Tensor,
    keys: Tensor,
    num_candidates: int,
    *,
    forbidden_id: int = -1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    statistics: Literal[False] = False,
) -> tuple[Tensor, Tensor]: ...
@overload
def sample_candidates(
    logits: Tensor,
    keys: Tensor,
    num_candidates: int,
    *,
    forbidden_id: int = -1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    statistics: Literal[True],
) -> tuple[Tensor, Tensor, Tensor]: ...
def sample_candidates(
    logits: Tensor,
    keys: Tensor,
    num_candidates: int,
    *,
    forbidden_id: int = -1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    statistics: bool = False,
) -> tuple[Tensor, ...]:
    """Draw K tokens per row of ``logits [R, V]``, independent and with replacement.

    Returns ``tokens [R, K]`` int64 and ``log_q [R, K]`` float32, the log-probability of each token
    under the law it was drawn from: ``softmax(logits / temperature)`` without ``forbidden_id`` (-1
    for none), cut by ``top_k``, then by ``top_p``, then by ``min_p``, where each cut renormalises
    what the one before it left:

    - ``top_k`` (0 for none) keeps the ``top_k`` most likely tokens,
    - ``top_p`` (1 for none) the most likely tokens whose probabilities first reach ``top_p``,
    - ``min_p`` (0 for none) those at least ``min_p`` times as likely as the most likely one.

    Tokens tied with the last one kept are kept. With ``statistics`` there is a third result,
    ``[R, 3]`` float32: of the same law, its entropy in nats, and the log-probabilities of its most
    likely and second most likely token (-inf if there is none). ``keys [R]`` int64 name the rows'
    random streams; candidate j of a row does not depend on K, nor on ``statistics``. The row is
    read once for any K, with statistics too; cuts read it, or what they leave of it, again.
    """
    edlm = torch.ops.edlm
    op = edlm.sample_candidates_statistics if statistics else edlm.sample_candidates
    return op(logits, keys, num_candidates, forbidden_id, temperature, top_p, top_k, min_p)


def token_log_probs(
    logits: Tensor, targets: Tensor, *, forbidden_id: int = -1, temperature: float = 1.0
) -> Tensor:
    """``log_softmax(logits / temperature)`` of ``logits [R, V]`` at ``targets [R]``: [R] float32.

    ``forbidden_id`` takes no part in the normalisation and itself scores -inf. The softmax is
    never materialised; each row is read once. The gradient with respect to the logits, one-hot
    minus softmax over the temperature, is 0 at ``forbidden_id`` and for rows that score -inf.
    """
    return torch.ops.edlm.token_log_probs(logits, targets, forbidden_id, temperature)


@overload
def head_sample_candidates(
    hidden: Tensor,
    weight: Tensor,
    keys: Tensor,
    num_candidates: int,
    *,
    bias: Tensor | None = None,
    forbidden_id: int = -1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    statistics: Literal[False] = False,
    workspace: Tensor | None = None,
) -> tuple[Tensor, Tensor]: ...
@overload
def head_sample_candidates(
    hidden: Tensor,
    weight: Tensor,
    keys: Tensor,
    num_candidates: int,
    *,
    bias: Tensor | None = None,
    forbidden_id: int = -1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    statistics: Literal[True],
    workspace: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]: ...
def head_sample_candidates(
    hidden: Tensor,
    weight: Tensor,
    keys: Tensor,
    num_candidates: int,
    *,
    bias: Tensor | None = None,
    forbidden_id: int = -1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    statistics: bool = False,
    workspace: Tensor | None = None,
) -> tuple[Tensor, ...]:
    """:func:`sample_candidates` of ``hidden [R, D] @ weight.T + bias``, without its [R, V] logits.

    ``weight [V, D]``, ``bias [V]`` and ``hidden`` share a dtype. The product is the library's; the
    logits of some rows at a time lie in ``workspace`` (uint8, :func:`head_workspace`; if None, that
    of :func:`one_head_workspace` or one of the call's own) and are drawn from while they are hot.
    Equal to the op on full logits but for the rounding of the product, which may depend on its
    number of rows. A float32 product is not rounded further; a 16-bit product accumulates in
    float32 and is rounded to 16 bits, since no library product on CPU returns float32 from 16-bit
    operands.
    """
    edlm = torch.ops.edlm
    op = edlm.sample_candidates_statistics if statistics else edlm.sample_candidates
    law = (forbidden_id, temperature, top_p, top_k, min_p)
    parts = [
        op(logits, keys[rows], num_candidates, *law)
        for rows, logits in head_rows(hidden, weight, bias, keys, "keys", workspace)
    ]
    return tuple(_joined(part) for part in zip(*parts, strict=True))


def head_token_log_probs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    forbidden_id: int = -1,
    temperature: float = 1.0,
    workspace: Tensor | None = None,
) -> Tensor:
    """:func:`token_log_probs` of ``hidden [R, D] @ weight.T + bias``, without its [R, V] logits.

    Operands, workspace and rounding as in :func:`head_sample_candidates`.
    """
    return _joined(
        [
            token_log_probs(
                logits, targets[rows], forbidden_id=forbidden_id, temperature=temperature
            )
            for rows, logits in head_rows(hidden, weight, bias, targets, "targets", workspace)
        ]
    )


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """The parts, one after another; a single one is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts))


def resample(log_weights: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Choose one of K candidates per sequence with probability ``softmax(log_weights [B, K])``.

    Returns ``choice [B]`` int64, ``ess [B]`` float32 = (sum w)^2 / sum w^2 in [1, K], and
    ``log_mean_weight [B]`` float32, Theorem 1's estimate of log Z. ``keys [B]`` int64. A weight of
    -inf is never chosen; NaN, +inf, or nothing but -inf is a bad row.
    """
    return torch.ops.edlm.resample(log_weights, keys)


def reveal_steps(keys: Tensor, length: int, mask_probs: Tensor) -> Tensor:
    """The step that reveals each position: [B, L] int64 in 1..N, or N + 1 for what is left at t_N.

    ``mask_probs [N + 1]`` float64 are mask_prob(t_0) >= ... >= mask_prob(t_N). Position l of a
    sequence has one uniform u, that of ``stream_keys(key, l)``, and is revealed in the step i with
    ``mask_probs[i] <= u < mask_probs[i - 1]``: the ancestral process of the absorbing posterior,
    decided before any model runs.
    """
    return torch.ops.edlm.reveal_steps(keys, length, mask_probs)
