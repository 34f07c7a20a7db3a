"""The ops of :mod:`edlm_engine.ops` on arrays of any library: NumPy, CuPy, or DLPack at large.

The same kernels behind the same checks, and no torch: importing this module imports NumPy alone.

For the same keys and numbers every op returns the tokens, choices and steps of its torch twin, and
the same log-probabilities to the last bit.

An argument is a NumPy array or any array with ``__dlpack__`` and ``__dlpack_device__`` (CuPy,
torch and others); but the ``head_*`` ops take NumPy's or CuPy's, whose product they use. It is read
where it lies, never copied (but for what is not contiguous among
keys, targets, log-weights and mask probabilities), and the GIL is released while the kernel runs.
Symbols: ``R`` rows, ``V`` vocabulary, ``K`` candidates, ``B`` sequences, ``L`` length. Logits, and
the weights of ``sample_weights``, are float32, float16 or bfloat16, with any row stride and a
contiguous last dimension; bfloat16 is that of DLPack, the NumPy dtype of ml_dtypes, or its bits as
uint16. Keys and tokens are int64, log-probabilities float32 and never positive. Randomness is
addressed: a draw is a pure function of its key and index, for any batch, stride, number of threads
or K.

On the host the results are NumPy arrays, and ``threads`` threads share the rows of a call; a row
that holds NaN or +inf at an allowed token, or allows nothing, raises ``ValueError`` naming the row.

On CUDA the ops run on the device of their first array and on its stream, which
``__cuda_array_interface__`` tells (where it tells none: the legacy default stream). They wait for
neither; the results are CuPy arrays on that device, ready on that stream, and a bad row yields
token -1 and log-probability NaN. All arrays must lie on that device and, but for rows of logits, be
contiguous. It takes CuPy (else ``ImportError``) and a build with the CUDA kernels (else
``RuntimeError``).

``TypeError`` for what is no array, ``ValueError`` for wrong dtypes, shapes, devices and values:
each names the argument, what was wanted and what came.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from numbers import Integral
from typing import Any

import numpy as np

from edlm_engine import _C
from edlm_engine.array_numbers import as_float, as_int
from edlm_engine.head_arrays import HEAD_WORKSPACE_BYTES, head_rows, joined  # noqa: F401
from edlm_engine.step_arrays import place_candidates, reveal_chosen, sum_log_probs  # noqa: F401

Array = Any
"""A NumPy array, or one with ``__dlpack__``; what is returned is NumPy's, on CUDA CuPy's."""


def stream_keys(seeds: Array | int, *coordinates: Array | int) -> Array:
    """Addresses of random streams: ``seeds`` with each coordinate folded in, from left to right.

    Seeds and coordinates are int64 arrays or ints (of 64 bits, signed or not) and broadcast
    together; the result is int64 of the broadcast shape. ``stream_keys(stream_keys(s, a), b)`` is
    not ``stream_keys(s, a, b)``: the place of a coordinate is part of the address. Philox4x32-10.
    """
    names = ("seeds", *(f"coordinate {i}" for i in range(len(coordinates))))
    words = [
        signed_word(int(x)) if isinstance(x, Integral) else _C.words(what, x)
        for what, x in zip(names, (seeds, *coordinates), strict=True)
    ]
    xp, place = _library([x for x in words if not isinstance(x, int)])
    with place:
        first, *others = xp.broadcast_arrays(
            *(xp.full((), x, dtype="int64") if isinstance(x, int) else x for x in words)
        )
        if not others:
            return first.copy()
        coordinates_ = xp.stack([x.reshape(-1) for x in others], axis=1)
        return _C.stream_keys(first.reshape(-1), coordinates_).reshape(first.shape)


def signed_word(value: int) -> int:
    """A 64-bit word given as a number in [-2^63, 2^64), as the int64 of the same bits."""
    if not -(2**63) <= value < 2**64:
        raise ValueError(f"a seed or coordinate must fit 64 bits, got {value}")
    return value - 2**64 if value >= 2**63 else value


def sample_candidates(
    logits: Array,
    keys: Array,
    num_candidates: int,
    *,
    forbidden_id: int = -1,
    temperature: float = 1.0,
    top_p: float = 1.0,
    top_k: int = 0,
    min_p: float = 0.0,
    statistics: bool = False,
    threads: int = 1,
) -> tuple[Array, ...]:
    """Draw K tokens per row of ``logits [R, V]``, independent and with replacement.

    Returns ``tokens [R, K]`` int64 and ``log_q [R, K]`` float32, the log-probability of each token
    under the law it was drawn from: ``softmax(logits / temperature)`` without ``forbidden_id`` (-1
    for none), cut by ``top_k`` (0 for none), then by ``top_p`` (1 for none), then by ``min_p`` (0
    for none), where each cut keeps ties and renormalises. With ``statistics`` also [R, 3] float32,
    that law's entropy in nats and the log-probabilities of its two most likely tokens (-inf for
    none). ``keys [R]`` int64 name the rows' random streams; candidate j of a row does not depend on
    K.
    """
    return _C.sample_candidates(
        logits,
        keys,
        as_int("num_candidates", num_candidates),
        forbidden_id=as_int("forbidden_id", forbidden_id),
        temperature=as_float("temperature", temperature),
        top_p=as_float("top_p", top_p),
        top_k=as_int("top_k", top_k),
        min_p=as_float("min_p", min_p),
        statistics=bool(statistics),
        threads=as_int("threads", threads),
    )


def sample_weights(
    weights: Array, keys: Array, num_candidates: int, *, threads: int = 1
) -> tuple[Array, Array]:
    """Draw K tokens per row of ``weights [R, V]`` >= 0, each with its share of the row's sum.

    Returns ``tokens [R, K]`` int64 and ``log_q [R, K]`` float32 = log(weight / sum). ``keys [R]``
    int64 name the rows' random streams, as in :func:`sample_candidates`. A row that holds NaN, a
    negative number or +inf, that sums to more than float32 holds, or that holds only 0 is bad.
    """
    return _C.sample_weights(
        weights,
        keys,
        as_int("num_candidates", num_candidates),
        threads=as_int("threads", threads),
    )


def token_log_probs(
    logits: Array,
    targets: Array,
    *,
    forbidden_id: int = -1,
    temperature: float = 1.0,
    threads: int = 1,
) -> Array:
    """``log_softmax(logits / temperature)`` of ``logits [R, V]`` at ``targets [R]``: [R] float32.

    ``targets`` are int64. ``forbidden_id`` takes no part in the normalisation and itself scores
    -inf. A target outside the vocabulary raises ``ValueError`` on the host.
    """
    return _C.token_log_probs(
        logits,
        targets,
        forbidden_id=as_int("forbidden_id", forbidden_id),
        temperature=as_float("temperature", temperature),
        threads=as_int("threads", threads),
    )


def residual_draw(
    logits_p: Array,
    logits_q: Array,
    draft: Array,
    keys: Array,
    *,
    forbidden_p: int = -1,
    forbidden_q: int = -1,
    temperature_p: float = 1.0,
    temperature_q: float = 1.0,
    threads: int = 1,
) -> tuple[Array, Array, Array]:
    """Take ``draft [R]`` with probability min(1, p / q), else draw from (p - q)+ in its place.

    p is ``softmax(logits_p / temperature_p)`` of ``logits_p [R, V]`` without ``forbidden_p`` (-1
    for none), q likewise; both have one dtype, and their vocabularies may differ in size. ``draft``
    and ``keys [R]`` are int64. If drafts are drawn from q, tokens are drawn from p. Returns
    ``token [R]`` int64, ``accepted [R]`` bool and ``log_p [R]`` float32. A draft outside q's
    vocabulary raises ``ValueError`` on the host.
    """
    return _C.residual_draw(
        logits_p,
        logits_q,
        draft,
        keys,
        forbidden_p=as_int("forbidden_p", forbidden_p),
        forbidden_q=as_int("forbidden_q", forbidden_q),
        temperature_p=as_float("temperature_p", temperature_p),
        temperature_q=as_float("temperature_q", temperature_q),
        threads=as_int("threads", threads),
    )


def head_sample_candidates(
    hidden: Array,
    weight: Array,
    keys: Array,
    num_candidates: int,
    *,
    bias: Array | None = None,
    **options: Any,
) -> tuple[Array, ...]:
    """:func:`sample_candidates` of ``hidden [R, D] @ weight.T + bias``, without its [R, V] logits.

    ``weight [V, D]``, ``bias [V]`` and ``hidden`` are arrays of NumPy, float32, or of CuPy, of one
    dtype; ``options`` are those of :func:`sample_candidates`. The product is the library's: at most
    :data:`HEAD_WORKSPACE_BYTES` of logits exist at a time, and they are drawn from while they are
    hot. Equal to the op on full logits but for the rounding of the product, which may depend on its
    number of rows.
    """
    parts = [
        sample_candidates(logits, keys[rows], num_candidates, **options)
        for rows, logits in head_rows(hidden, weight, bias, keys, "keys")
    ]
    return joined(parts, hidden)


def head_token_log_probs(
    hidden: Array, weight: Array, targets: Array, *, bias: Array | None = None, **options: Any
) -> Array:
    """:func:`token_log_probs` of ``hidden [R, D] @ weight.T + bias``, without its [R, V] logits.

    Operands and rounding as in :func:`head_sample_candidates`.
    """
    parts = [
        (token_log_probs(logits, targets[rows], **options),)
        for rows, logits in head_rows(hidden, weight, bias, targets, "targets")
    ]
    return joined(parts, hidden)[0]


def resample(log_weights: Array, keys: Array) -> tuple[Array, Array, Array]:
    """Choose one of K candidates per sequence with probability ``softmax(log_weights [B, K])``.

    ``log_weights`` are float32, ``keys [B]`` int64. Returns ``choice [B]`` int64, ``ess [B]``
    float32 = (sum w)^2 / sum w^2 in [1, K], and ``log_mean_weight [B]`` float32. A weight of -inf
    is never chosen; NaN, +inf, or nothing but -inf is a bad row.
    """
    return _C.resample(log_weights, keys)


def reveal_steps(keys: Array, length: int, mask_probs: Array) -> Array:
    """The step that reveals each position: [B, L] int64 in 1..N, or N + 1 for what is left at t_N.

    ``keys [B]`` are int64, ``mask_probs [N + 1]`` float64: mask_prob(t_0) >= ... >= mask_prob(t_N)
    in [0, 1]. Position l of a sequence has one uniform u, that of ``stream_keys(key, l)``, and is
    revealed in the step i with ``mask_probs[i] <= u < mask_probs[i - 1]``.
    """
    return _C.reveal_steps(keys, as_int("length", length), mask_probs)


def _library(arrays: list[Array]) -> tuple[Any, AbstractContextManager]:
    """NumPy if the arrays of :func:`stream_keys` are NumPy's, CuPy if they are CuPy's; and the
    device of the first, to be made CuPy's current one."""
    numpys = sum(isinstance(x, np.ndarray) for x in arrays)
    if numpys == len(arrays):
        return np, nullcontext()
    if numpys:
        raise ValueError("seeds and coordinates must lie on one device, got host and CUDA arrays")
    import cupy

    return cupy, arrays[0].device
