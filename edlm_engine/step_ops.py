"""The ops that make up a step of the sampling loop around its draws; part of `edlm_engine.ops`."""

from __future__ import annotations

import torch
from torch import Tensor

import edlm_engine.op_rules  # noqa: F401  # loads the library


def place_candidates(
    tokens: Tensor,
    log_q: Tensor,
    places: Tensor,
    starts: Tensor,
    rows: Tensor,
    x0: Tensor,
    canvas: Tensor,
    failed: Tensor,
    *,
    first_position: int = 0,
) -> tuple[Tensor, Tensor]:
    """Put what was drawn in n sequences of ``canvas [B, L]``, at ``rows [n]``, where it belongs.

    ``tokens`` and ``log_q [R, K]`` were drawn at ``places [R]``, flat in [n, L]; those of sequence
    i begin at ``starts[i] - starts[0]`` (``starts [n + 1]``). The first E sequences fill
    ``x0 [E, K, L]``: their rows of the canvas, with the draws in their places. In the others
    candidate 0 is revealed in the canvas. A token -1 becomes 0 and sets ``failed [B]`` of its
    sequence to 1. All are contiguous, and int64 but for ``log_q``. ``x0``, ``canvas`` and
    ``failed`` are written; the values of indices are checked on the CPU alone.

    Returns what x0 completes, ``xt [E, L]`` int64, and the sums [E, K] float32 of ``log_q`` over
    draws from ``first_position`` on, as :func:`sum_log_probs` adds them.
    """
    return torch.ops.edlm.place_candidates(
        tokens, log_q, places, starts, rows, first_position, x0, canvas, failed
    )


def reveal_chosen(
    energy: Tensor,
    keys: Tensor,
    x0: Tensor,
    places: Tensor,
    starts: Tensor,
    rows: Tensor,
    columns: Tensor,
    canvas: Tensor,
    ess: Tensor,
    log_z: Tensor,
    failed: Tensor,
    *,
    temperature: float = 1.0,
) -> Tensor:
    """Choose one candidate of each of E sequences by its energy, and reveal some of its tokens.

    The choice, returned as [E] int64, is that of ``ops.resample`` with ``keys [E]`` and the weights
    ``-energy / temperature`` (``energy [E, K]`` float32); ``ess [B, S]`` and ``log_z [B, S]`` get
    its diagnostics at ``rows [E]`` and ``columns [E]``. The chosen tokens of ``x0 [E, K, L]`` at
    ``places``, flat in [E, L] and cut by ``starts [E + 1]`` as in :func:`place_candidates`, go into
    ``canvas [B, L]``. Bad weights raise on CPU; on CUDA they choose -1, reveal candidate 0 and set
    ``failed [B]`` to 1. The last four arguments are written.
    """
    return torch.ops.edlm.reveal_chosen(
        energy,
        temperature,
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


def sum_log_probs(log_probs: Tensor, sequences: int, starts: Tensor | None = None) -> Tensor:
    """The sum over each of n sequences of ``log_probs [R]`` float32: [n] float64.

    Sequence i has those from ``starts[i]`` to ``starts[i + 1]`` (``starts [n + 1]`` int64, checked
    on the CPU alone), or without ``starts`` one of n equal parts. Each is first rounded to a
    multiple of 2^-30: up to 2^23 nats such numbers add without rounding, so the sum does not depend
    on the order of its terms, and a sequence's score not on the batch or the number of threads.
    """
    return torch.ops.edlm.sum_log_probs(log_probs, sequences, starts)
