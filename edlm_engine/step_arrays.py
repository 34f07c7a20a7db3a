"""The ops that make up a step of a sampling loop around its draws; part of `edlm_engine.arrays`."""

from __future__ import annotations

from typing import Any

from edlm_engine import _C
from edlm_engine.array_numbers import as_float, as_int

Array = Any


def place_candidates(
    tokens: Array,
    log_q: Array,
    places: Array,
    starts: Array,
    rows: Array,
    x0: Array,
    canvas: Array,
    failed: Array,
    *,
    first_position: int = 0,
) -> tuple[Array, Array]:
    """Put what was drawn in n sequences of ``canvas [B, L]``, at ``rows [n]``, where it belongs.

    ``tokens`` and ``log_q [R, K]`` were drawn at ``places [R]``, flat in [n, L]; those of sequence
    i begin at ``starts[i] - starts[0]`` (``starts [n + 1]``). The first E sequences fill
    ``x0 [E, K, L]``: their rows of the canvas, with the draws in their places. In the others
    candidate 0 is revealed in the canvas. A token -1 becomes 0 and sets ``failed [B]`` of its
    sequence to 1. All are contiguous, and int64 but for ``log_q``. ``x0``, ``canvas`` and
    ``failed`` are written; the values of indices are checked on the host alone.

    Returns what x0 completes, ``xt [E, L]`` int64, and the sums [E, K] float32 of ``log_q`` over
    draws from ``first_position`` on, as :func:`sum_log_probs` adds them.
    """
    first = as_int("first_position", first_position)
    return _C.place_candidates(tokens, log_q, places, starts, rows, first, x0, canvas, failed)


def reveal_chosen(
    energy: Array,
    keys: Array,
    x0: Array,
    places: Array,
    starts: Array,
    rows: Array,
    columns: Array,
    canvas: Array,
    ess: Array,
    log_z: Array,
    failed: Array,
    *,
    temperature: float = 1.0,
) -> Array:
    """Choose one candidate of each of E sequences by its energy, and reveal some of its tokens.

    The choice, returned as [E] int64, is that of :func:`resample` with ``keys [E]`` and the weights
    ``-energy / temperature`` (``energy [E, K]`` float32); ``ess [B, S]`` and ``log_z [B, S]`` get
    its diagnostics at ``rows [E]`` and ``columns [E]``. The chosen tokens of ``x0 [E, K, L]`` at
    ``places``, flat in [E, L] and cut by ``starts [E + 1]`` as in :func:`place_candidates`, go into
    ``canvas [B, L]``. Bad weights raise on the host; on CUDA they choose -1, reveal candidate 0 and
    set ``failed [B]`` to 1. The last four arguments are written.
    """
    return _C.reveal_chosen(
        energy,
        as_float("temperature", temperature),
        keys,
        x0,
        places,
        starts,
        rows,
        columns,
        canvas,
        ess,
        log_z,
        failed,
    )


def sum_log_probs(log_probs: Array, sequences: int, starts: Array | None = None) -> Array:
    """The sum over each of n sequences of ``log_probs [R]`` float32: [n] float64.

    Sequence i has those from ``starts[i]`` to ``starts[i + 1]`` (``starts [n + 1]`` int64, checked
    on the host alone), or without ``starts`` one of n equal parts. Each is first rounded to a
    multiple of 2^-30: up to 2^23 nats such numbers add without rounding, so the sum does not depend
    on the order of its terms, and a sequence's score not on the batch or the number of threads.
    """
    return _C.sum_log_probs(log_probs, as_int("sequences", sequences), starts)
