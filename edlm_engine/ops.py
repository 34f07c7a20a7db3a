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

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from torch import Tensor

import edlm_engine.op_rules  # noqa: F401  # loads the library
from edlm_engine.arrays import signed_word
from edlm_engine.step_ops import place_candidates, reveal_chosen, sum_log_probs  # noqa: F401
from edlm_engine.weight_ops import sample_weights  # noqa: F401

HEAD_WORKSPACE_BYTES = 60 << 20
"""Largest workspace of the ``head_*`` ops: the logits that exist at a time, in bytes."""


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


def sample_candidates(
    logits: Tensor,
    keys: Tensor,
    num_candidates: int,
    *,
    forbidden_id: int = -1,
    temperature: float = 1.0,
    top_p: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """Draw K tokens per row of ``logits [R, V]``, independent and with replacement.

    Returns ``tokens [R, K]`` int64 and ``log_q [R, K]`` float32, the log-probability of each token
    under the distribution it was drawn from: ``softmax(logits / temperature)`` without
    ``forbidden_id`` (-1 for none). With ``top_p < 1`` that distribution is cut to its nucleus, the
    most likely tokens whose probabilities first reach ``top_p`` (all tokens tied with the last one
    are kept), and renormalised. ``keys [R]`` int64 name the rows' random streams; candidate j of a
    row does not depend on K. The row is read once for any K (``top_p < 1`` reads it twice).
    """
    return torch.ops.edlm.sample_candidates(
        logits, keys, num_candidates, forbidden_id, temperature, top_p
    )


def token_log_probs(
    logits: Tensor, targets: Tensor, *, forbidden_id: int = -1, temperature: float = 1.0
) -> Tensor:
    """``log_softmax(logits / temperature)`` of ``logits [R, V]`` at ``targets [R]``: [R] float32.

    ``forbidden_id`` takes no part in the normalisation and itself scores -inf. The softmax is
    never materialised; each row is read once. The gradient with respect to the logits, one-hot
    minus softmax over the temperature, is 0 at ``forbidden_id`` and for rows that score -inf.
    """
    return torch.ops.edlm.token_log_probs(logits, targets, forbidden_id, temperature)


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
    workspace: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """:func:`sample_candidates` of ``hidden [R, D] @ weight.T + bias``, without its [R, V] logits.

    ``weight [V, D]``, ``bias [V]`` and ``hidden`` share a dtype. The product is the library's; the
    logits of some rows at a time lie in ``workspace`` (uint8, :func:`head_workspace`; if None, that
    of :func:`one_head_workspace` or one of the call's own) and are drawn from while they are hot.
    Equal to the op on full logits but for the rounding of the product, which may depend on its
    number of rows. A float32 product is not rounded further; a 16-bit product accumulates in
    float32 and is rounded to 16 bits, since no library product on CPU returns float32 from 16-bit
    operands.
    """
    parts = [
        sample_candidates(
            logits,
            keys[rows],
            num_candidates,
            forbidden_id=forbidden_id,
            temperature=temperature,
            top_p=top_p,
        )
        for rows, logits in _head_rows(hidden, weight, bias, keys, "keys", workspace)
    ]
    tokens, log_q = zip(*parts, strict=True)
    return _joined(tokens), _joined(log_q)


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
            for rows, logits in _head_rows(hidden, weight, bias, targets, "targets", workspace)
        ]
    )


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """The parts, one after another; a single one is not copied."""
    return parts[0] if len(parts) == 1 else torch.cat(tuple(parts))


def head_workspace(vocab_size: int, rows: int, dtype: torch.dtype, device="cpu") -> Tensor:
    """Workspace for the ``head_*`` ops on up to ``rows`` rows: uint8, at most
    :data:`HEAD_WORKSPACE_BYTES` (but one row at least)."""
    row = vocab_size * dtype.itemsize
    fitting = max(1, min(rows, HEAD_WORKSPACE_BYTES // row))
    return torch.empty(fitting * row, dtype=torch.uint8, device=device)


@contextmanager
def one_head_workspace(shared: threading.local | None = None) -> Iterator[None]:
    """Within the body, ``head_*`` calls of a thread that are given no workspace share one.

    It has room for :data:`HEAD_WORKSPACE_BYTES` (or one row, if that is more) from the first call
    on, so a loop of calls allocates it once; pages never written to take no memory on the CPU.
    Threads that inherit the context (``asyncio.to_thread``) have one each. ``shared``, a
    ``threading.local()``, keeps it from one body to the next.
    """
    token = _shared.set(threading.local() if shared is None else shared)
    try:
        yield
    finally:
        _shared.reset(token)


_shared: ContextVar[threading.local | None] = ContextVar("workspace", default=None)


def _workspace(vocab_size: int, rows: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """The shared workspace if there is one, else one for this call."""
    shared = None if torch.compiler.is_compiling() else _shared.get()
    if shared is None:
        return head_workspace(vocab_size, rows, dtype, device)
    workspace = getattr(shared, "workspace", None)
    if (
        workspace is None
        or workspace.device != device
        or workspace.numel() < vocab_size * dtype.itemsize
    ):
        workspace = head_workspace(vocab_size, HEAD_WORKSPACE_BYTES, dtype, device)
        shared.workspace = workspace
    return workspace


def _head_rows(
    hidden: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    per_row: Tensor,
    what: str,
    workspace: Tensor | None,
) -> Iterator[tuple[slice, Tensor]]:
    """Some rows at a time and their logits, which the next turn overwrites."""
    if (
        hidden.dim() != 2
        or weight.dim() != 2
        or hidden.shape[1] != weight.shape[1]
        or len(weight) < 1
    ):
        raise ValueError(
            "hidden and weight must have shapes [R, D] and [V, D] with V >= 1, "
            f"got {list(hidden.shape)} and {list(weight.shape)}"
        )
    if hidden.dtype != weight.dtype or (bias is not None and bias.dtype != weight.dtype):
        got = [x.dtype for x in (hidden, weight, bias) if x is not None]
        raise ValueError(f"hidden, weight and bias must share a dtype, got {got}")
    for name, x in (("hidden", hidden), ("weight", weight), ("bias", bias)):
        if x is not None and x.requires_grad and torch.is_grad_enabled():
            raise RuntimeError(
                f"the head_* ops have no gradient and {name} requires grad: call them under "
                "torch.no_grad(), or token_log_probs on the full logits"
            )
    vocab, rows = weight.shape[0], hidden.shape[0]
    if bias is not None and bias.shape != (vocab,):
        raise ValueError(f"bias must have shape [{vocab}], got {list(bias.shape)}")
    if per_row.shape != (rows,):
        raise ValueError(f"{what} must have shape [{rows}], got {list(per_row.shape)}")
    if workspace is None:
        workspace = _workspace(vocab, rows, weight.dtype, weight.device)
    if workspace.dtype != torch.uint8 or workspace.numel() < vocab * weight.itemsize:
        raise ValueError(
            f"workspace must be uint8 with at least {vocab * weight.itemsize} elements, "
            f"got {workspace.dtype} {list(workspace.shape)}"
        )
    fitting = workspace.numel() // (vocab * weight.itemsize)
    buffer = workspace[: fitting * vocab * weight.itemsize].view(weight.dtype).view(fitting, vocab)
    # No rows are one part too, so that the other arguments are checked all the same.
    for first in range(0, max(1, rows), fitting):
        part = slice(first, min(rows, first + fitting))
        logits = buffer[: part.stop - first]
        with torch.no_grad():  # not around the yield, where it would reach into the caller
            if bias is None:
                torch.mm(hidden[part], weight.T, out=logits)
            else:
                torch.addmm(bias, hidden[part], weight.T, out=logits)
        yield part, logits


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
