"""Exact left-to-right text with the known tokens kept (coAR), from parallel drafts.

The law of an energy step: going from the left over the masked positions, each is drawn from the
autoregressive model given everything to its left; positions to its right count only as far as they
are to the left of a later one. The step reveals its positions of this text. One call of the
denoiser drafts all of them; one call of the AR model scores the drafts, which are accepted from the
left with probability min(1, p / q); the first refused is drawn again from (p - q)+, and the AR
model is called again from there on, the later drafts being as good as before (Leviathan et al.
2023, with a factorised draft). That is the AR model's law whatever the drafts are, in 1 + refusals
calls, and the host waits for the device once for each. A step goes no further than the last
position it reveals: with `order="leftmost"`, `steps=1` and no suffix the text is exactly the AR
model's.

Needs an energy with an AR `model`, as `ARResidualEnergy` is; `num_candidates` has no say. There are
no weights: `ess` and `log_z` are NaN. `energy_evaluations` are the calls of the AR model.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from edlm_engine import ops
from edlm_engine.execution.graphs import call_model
from edlm_engine.execution.upload import upload
from edlm_engine.reference_random import random_bits, uniform
from edlm_engine.reference_residual import DECIDE, RESIDUAL_TAG
from edlm_engine.sampling.corrections.joint import finish, start  # noqa: F401
from edlm_engine.sampling.purposes import ACCEPT
from edlm_engine.sampling.steps import Step

if TYPE_CHECKING:
    from edlm_engine.sampling.run import Run

PARTICLES = False
LOOKAHEAD = 8  # drafts that a call with a cache tries


def advance(run: Run, step: Step, values: Tensor | None) -> None:
    """See `Correction.advance`."""
    assert values is not None
    tokens, log_q, _ = run.draw(values.flatten(0, 1), step, candidates=1)
    scored, length = len(step.times), run.xt.shape[1]
    x0 = run.xt.new_empty(scored, 1, length)
    ops.place_candidates(
        tokens, log_q, step.draws, step.draw_starts, step.rows, x0, run.xt, run.failed
    )
    if scored == 0:
        return
    first = int(step.masked.sum())
    text, revealed = x0[:, 0], torch.zeros(scored, length, dtype=torch.bool, device=run.device)
    revealed.view(-1)[step.reveals] = True
    last = torch.where(revealed, torch.arange(length, device=run.device), -1).amax(dim=1)
    drafts = _drafts(run, step, text, log_q[:first, 0], last)
    if hasattr(run.ar, "start_cache"):
        drafts.cache = run.ar.start_cache(scored, length)
    while _call(run, step, values, text, drafts):
        pass
    rows = step.rows[:scored]
    before = run.xt.index_select(0, rows)
    run.xt.index_copy_(0, rows, torch.where(revealed, text, before))


def one_call(run: Run, step: Step, values: Tensor, text: Tensor, log_q: Tensor) -> Tensor:
    """One call of the AR model on drafts text [E, L]: what it settles from the left, [E, L] bool.

    log_q: [R, K] of the step's draws. Where a draft was refused, text is changed.
    """
    first, length = int(step.masked.sum()), text.shape[1]
    last = torch.full((len(text),), length, device=run.device)
    drafts = _drafts(run, step, text, log_q[:first, 0], last)
    _call(run, step, values, text, drafts)
    (masked,) = upload(run.device, torch.from_numpy(step.masked.astype(np.int64).ravel()))
    masked = masked.view(text.shape).bool()
    # What lies before the first open position is settled, and what the model cannot score.
    return masked & (drafts.left.cumsum(dim=1) == 0)


@dataclass
class _Drafts:
    """Drafts [E, L]: what is left to settle, their log q, and where their randomness lies."""

    left: Tensor  # bool
    log_q: Tensor
    keys: Tensor
    log_u: Tensor  # of the decision on each
    begin: Tensor  # [E]: the first row of the AR model's that is not as the text is now
    cache: Any = None  # of the AR model; without one it reads the whole text at each call


def _drafts(run: Run, step: Step, text: Tensor, log_q: Tensor, last: Tensor) -> _Drafts:
    """Those of the first E sequences of a step, to be settled up to `last` [E]."""
    first, model = len(log_q), run.ar
    draws = step.draws[:first]
    position = torch.arange(text.shape[1], device=text.device)
    left = torch.zeros_like(text, dtype=torch.bool)
    left.view(-1)[draws] = True
    # What the model cannot score stays as it was drawn.
    left &= (position <= last[:, None]) & (position >= model.first_position)
    keys = _dense(text, draws, ops.stream_keys(step.draw_keys[:first], ACCEPT), 0)
    log_u = uniform(random_bits(keys, 0, DECIDE, RESIDUAL_TAG)).log()  # as residual_draw decides
    begin = torch.full((len(text),), model.first_position, device=text.device)
    return _Drafts(left, _dense(text, draws, log_q, 0.0), keys, log_u, begin)


def _call(run: Run, step: Step, values: Tensor, text: Tensor, drafts: _Drafts) -> bool:
    """One call of the AR model for all sequences that are not settled; False if there are none."""
    device, law, length = text.device, _law(run), text.shape[1]
    state = torch.cat([drafts.left.long(), drafts.begin[:, None]], dim=1)
    on_host = state.cpu().numpy()  # the wait of this call
    left, begin = on_host[:, :-1] > 0, on_host[:, -1]
    open_rows = np.flatnonzero(left.any(axis=1))
    if len(open_rows) == 0:
        return False
    run.evaluations[step.rows_on_host[open_rows]] += 1
    if drafts.cache is None:
        begin, count = np.zeros_like(begin), length
    else:
        # Some drafts beyond the next: more are seldom accepted in a row.
        ahead = np.where(left.any(axis=1), left.argmax(axis=1) - begin, 0).max() + LOOKAHEAD
        count = int(min(ahead, length - begin.min()))
    position = np.arange(length)
    tried = left & (position >= begin[:, None]) & (position < (begin + count)[:, None])
    rows, places, begin_, tried_ = upload(
        device,
        torch.from_numpy(open_rows),
        torch.from_numpy(np.flatnonzero(tried)),
        torch.from_numpy(begin),
        torch.from_numpy(tried.astype(np.int64).ravel()),
    )
    if drafts.cache is None:
        hidden = call_model(run.ar, "hidden", text[rows])
        own = np.zeros(len(text), dtype=np.int64)
        own[open_rows] = np.arange(len(open_rows))
    else:
        hidden = run.ar.hidden_step(text, drafts.cache, begin_, count)
        own = np.arange(len(text))
    (own_,) = upload(device, torch.from_numpy(own))
    owner, at = places // length, places % length
    log_p = ops.head_token_log_probs(
        hidden[own_[owner], at - begin_[owner]],
        law.weight,
        text.reshape(-1)[places],
        bias=law.bias,
        forbidden_id=law.forbidden_id,
    )
    ratio = _dense(text, places, log_p.double(), 0.0) - drafts.log_q
    refused = tried_.view(text.shape).bool() & ~(drafts.log_u < ratio)
    cut = torch.where(refused.any(dim=1), refused.long().argmax(dim=1), length)
    at = (cut[rows] - begin_[rows]).clamp(max=count - 1)
    _redraw(run, law, hidden[own_[rows], at], values, text, drafts.keys, rows, cut[rows])
    drafts.begin = torch.minimum(cut + 1, begin_ + count).clamp(max=length)
    drafts.left &= torch.arange(length, device=device) >= drafts.begin[:, None]
    failed = (text[rows] < 0).any(dim=1)
    run.failed.index_put_((step.rows[rows],), failed.long(), accumulate=True)
    text.clamp_(min=0)
    return True


class _Law(NamedTuple):
    """The AR model's law of the tokens that may be drawn: all but the mask."""

    weight: Tensor
    bias: Tensor | None
    forbidden_id: int


def _law(run: Run) -> _Law:
    (weight, bias), mask_id = run.ar.head, run.denoiser.mask_id
    own = run.ar.forbidden_id
    if own in (-1, mask_id) or mask_id >= len(weight):
        return _Law(weight, bias, mask_id if own == -1 and mask_id < len(weight) else own)
    bias = weight.new_zeros(len(weight)) if bias is None else bias.clone()
    bias[mask_id] = -torch.inf
    return _Law(weight, bias, own)


def _redraw(
    run: Run,
    law: _Law,
    hidden: Tensor,
    values: Tensor,
    text: Tensor,
    keys: Tensor,
    rows: Tensor,
    cut: Tensor,
) -> None:
    """Draw text[rows, cut] again where a draft was refused (cut < L), hidden [n, D] being there."""
    length = text.shape[1]
    at = cut.clamp(max=length - 1)
    token, _, _ = ops.residual_draw(
        torch.nn.functional.linear(hidden, law.weight, law.bias).float(),
        run.logits(values[rows, at]).float(),
        text[rows, at],
        keys[rows, at],
        forbidden_p=law.forbidden_id,
        forbidden_q=run.denoiser.mask_id,
        temperature_q=run.config.temperature,
    )
    text[rows, at] = torch.where(cut < length, token, text[rows, at])


def _dense(text: Tensor, places: Tensor, values: Tensor, rest: float) -> Tensor:
    """[E, L] with values [R] at flat places, `rest` elsewhere."""
    result = torch.full(text.shape, rest, dtype=values.dtype, device=text.device)
    result.view(-1)[places] = values
    return result
