"""The library of ops, and what torch must know of them besides: shapes, dtypes and gradients."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

torch.ops.load_library(Path(__file__).with_name("_torch.so"))

GRADIENT_CHUNK_BYTES = 60 << 20
"""Float32 softmax that exists at a time in the backward pass of ``token_log_probs``, in bytes."""


@torch.library.register_fake("edlm::stream_keys")
def _(seeds, coordinates):
    return torch.empty_like(seeds, memory_format=torch.contiguous_format)


@torch.library.register_fake("edlm::sample_candidates")
def _(logits, keys, num_candidates, forbidden_id, temperature, top_p, top_k=0, min_p=0.0):
    shape = (logits.shape[0], num_candidates)
    return logits.new_empty(shape, dtype=torch.int64), logits.new_empty(shape, dtype=torch.float32)


@torch.library.register_fake("edlm::sample_candidates_statistics")
def _(logits, keys, num_candidates, forbidden_id, temperature, top_p, top_k=0, min_p=0.0):
    rows = logits.shape[0]
    return (
        logits.new_empty((rows, num_candidates), dtype=torch.int64),
        logits.new_empty((rows, num_candidates), dtype=torch.float32),
        logits.new_empty((rows, 3), dtype=torch.float32),
    )


@torch.library.register_fake("edlm::sample_weights")
def _(weights, keys, num_candidates):
    shape = (weights.shape[0], num_candidates)
    return weights.new_empty(shape, dtype=torch.int64), weights.new_empty(
        shape, dtype=torch.float32
    )


@torch.library.register_fake("edlm::token_log_probs")
def _(logits, targets, forbidden_id, temperature):
    return logits.new_empty(logits.shape[0], dtype=torch.float32)


@torch.library.register_fake("edlm::resample")
def _(log_weights, keys):
    batch = log_weights.shape[0]
    return (
        log_weights.new_empty(batch, dtype=torch.int64),
        log_weights.new_empty(batch),
        log_weights.new_empty(batch),
    )


@torch.library.register_fake("edlm::residual_draw")
def _(logits_p, logits_q, draft, keys, forbidden_p, forbidden_q, temperature_p, temperature_q):
    rows = logits_p.shape[0]
    return (
        logits_p.new_empty(rows, dtype=torch.int64),
        logits_p.new_empty(rows, dtype=torch.bool),
        logits_p.new_empty(rows, dtype=torch.float32),
    )


@torch.library.register_fake("edlm::place_candidates")
def _(tokens, log_q, places, starts, rows, first_position, x0, canvas, failed):
    scored = x0.shape[0]
    return x0.new_empty(scored, x0.shape[2]), log_q.new_empty(scored, tokens.shape[1])


@torch.library.register_fake("edlm::reveal_chosen")
def _(energy, temperature, keys, x0, places, starts, rows, columns, canvas, ess, log_z, failed):
    return keys.new_empty(x0.shape[0])


@torch.library.register_fake("edlm::sum_log_probs")
def _(log_probs, sequences, starts):
    return log_probs.new_empty(sequences, dtype=torch.float64)


@torch.library.register_fake("edlm::reveal_steps")
def _(keys, length, mask_probs):
    return keys.new_empty((keys.shape[0], length))


def _save_for_gradient(ctx, inputs, output):
    logits, targets, ctx.forbidden_id, ctx.temperature = inputs
    ctx.save_for_backward(logits, targets, output)


def _token_log_probs_gradient(ctx, grad: Tensor):
    """(one-hot - softmax) / T times the incoming gradient, some rows at a time."""
    logits, targets, log_probs = ctx.saved_tensors
    vocab = logits.shape[1]
    # A bad row of CUDA, NaN, stays NaN, and its target may be anything.
    grad = torch.where(log_probs.isnan(), log_probs, grad.float() / ctx.temperature)
    grad = grad.masked_fill(log_probs == -torch.inf, 0)[:, None]
    targets = targets.clamp(0, vocab - 1)[:, None]
    result = torch.empty_like(logits, memory_format=torch.contiguous_format)
    chunk = max(1, GRADIENT_CHUNK_BYTES // (4 * vocab))
    for first in range(0, len(logits), chunk):
        part = slice(first, first + chunk)
        scores = logits[part].float()
        if ctx.forbidden_id >= 0:
            forbidden = torch.full_like(targets[part], ctx.forbidden_id)
            scores = scores.scatter(1, forbidden, -torch.inf)
        # The largest score becomes 0 before the division, which then cannot overflow upwards.
        scores = (scores - scores.amax(dim=1, keepdim=True).detach()) / ctx.temperature
        minus = scores.softmax(dim=1) * -grad[part]
        result[part] = minus.scatter_add(1, targets[part], grad[part])
    return result, None, None, None


def _no_gradient(what: str):
    def backward(ctx, *_):
        raise RuntimeError(f"{what}, or detach its input")

    return backward


torch.library.register_autograd(
    "edlm::token_log_probs", _token_log_probs_gradient, setup_context=_save_for_gradient
)
for name in ("sample_candidates", "sample_candidates_statistics"):
    torch.library.register_autograd(
        f"edlm::{name}",
        _no_gradient("sample_candidates has no gradient: use token_log_probs at the drawn tokens"),
    )
torch.library.register_autograd(
    "edlm::sample_weights",
    _no_gradient("sample_weights has no gradient: gather the weights of the drawn tokens"),
)
torch.library.register_autograd(
    "edlm::resample", _no_gradient("resample has no gradient: use torch.logsumexp")
)
torch.library.register_autograd(
    "edlm::residual_draw",
    _no_gradient("residual_draw has no gradient: use token_log_probs at the returned tokens"),
)
