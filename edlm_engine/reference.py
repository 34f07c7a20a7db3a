"""Plain PyTorch twin of every op of `edlm_engine.ops`, in float64: its specification and oracle.

Written for clarity: whole rows are materialised and nothing is fused. Every function has the name,
the arguments and the outputs of its twin. Bad arguments raise `RuntimeError`, as the compiled ops
do on CPU; here they raise on every device.

Randomness is addressed, not drawn: see `edlm_engine.reference_random`.
"""

import torch
from torch import Tensor

from edlm_engine.reference_law import check_rows, law_statistics, log_softmax
from edlm_engine.reference_random import (
    SAMPLE_TAG,
    check,
    check_int64,
    describe,
    inverse_cdf,
    philox,  # noqa: F401  # part of the specification
    random_bits,
    stream_keys,  # an op, under its name
    uniform,
)
from edlm_engine.reference_residual import residual_draw  # noqa: F401
from edlm_engine.reference_weights import sample_weights  # noqa: F401

RESAMPLE_TAG = 0x52455341


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
    """K independent draws from each row of logits [R, V].

    Returns tokens [R, K] int64 and log_q [R, K] float32, the log-probability of the drawn token
    under the law drawn from (see `log_softmax`), and with `statistics` those of the law [R, 3] (see
    `law_statistics`). Candidate j of a row depends on its logits, its key [R] and j alone, and not
    on K.
    """
    check(num_candidates >= 1, "num_candidates must be >= 1", num_candidates)
    log_probs = log_softmax(logits, forbidden_id, temperature, top_p, top_k, min_p)
    check_int64("keys", keys, log_probs.shape[0])
    draws = torch.arange(num_candidates, device=keys.device)
    u = uniform(random_bits(keys[:, None], draws, 0, SAMPLE_TAG))
    tokens = inverse_cdf(torch.exp(log_probs), u)
    drawn = tokens, log_probs.gather(1, tokens).float()
    return (*drawn, law_statistics(log_probs)) if statistics else drawn


def token_log_probs(
    logits: Tensor, targets: Tensor, *, forbidden_id: int = -1, temperature: float = 1.0
) -> Tensor:
    """log softmax(logits / temperature) at the target of each row: float32 [R].

    `forbidden_id` is left out of the softmax and itself scores -inf.
    """
    log_probs = log_softmax(logits, forbidden_id, temperature)
    check_int64("targets", targets, log_probs.shape[0])
    vocab = log_probs.shape[1]
    outside = (targets < 0) | (targets >= vocab)
    if outside.any():
        row = int(outside.nonzero()[0])
        raise RuntimeError(f"targets row {row} must be in [0, {vocab}), got {int(targets[row])}")
    return log_probs.gather(1, targets[:, None])[:, 0].float()


def head_sample_candidates(
    hidden: Tensor,
    weight: Tensor,
    keys: Tensor,
    num_candidates: int,
    *,
    bias: Tensor | None = None,
    **options,
) -> tuple[Tensor, ...]:
    """`sample_candidates` of hidden [R, D] @ weight [V, D].T + bias [V], with its options."""
    return sample_candidates(_head(hidden, weight, bias), keys, num_candidates, **options)


def head_token_log_probs(
    hidden: Tensor,
    weight: Tensor,
    targets: Tensor,
    *,
    bias: Tensor | None = None,
    forbidden_id: int = -1,
    temperature: float = 1.0,
) -> Tensor:
    """`token_log_probs` of hidden [R, D] @ weight [V, D].T + bias [V]."""
    logits = _head(hidden, weight, bias)
    return token_log_probs(logits, targets, forbidden_id=forbidden_id, temperature=temperature)


def resample(log_weights: Tensor, keys: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Choose one of K weighted candidates per row of log_weights [B, K].

    Returns choice [B] int64, drawn with probability softmax(log_weights); the effective sample size
    (sum w)^2 / sum w^2 in [1, K], [B] float32; and log((1 / K) sum w), [B] float32. A weight of
    -inf is allowed; NaN, +inf and rows of nothing but -inf raise.
    """
    check(log_weights.dim() == 2, "log_weights must have shape [B, K]", list(log_weights.shape))
    candidates = log_weights.shape[1]
    check(candidates >= 1, "log_weights must have K >= 1", candidates)
    check_int64("keys", keys, log_weights.shape[0])
    log_weights = log_weights.double()
    check_rows(log_weights, "log_weights")
    largest = log_weights.amax(dim=1, keepdim=True)
    weights = torch.exp(log_weights - largest)
    total = weights.sum(dim=1)
    u = uniform(random_bits(keys, 0, 0, RESAMPLE_TAG))
    choice = inverse_cdf(weights, u[:, None])[:, 0]
    ess = total**2 / (weights**2).sum(dim=1)
    log_mean_weight = largest[:, 0] + torch.log(total / candidates)
    return choice, ess.float(), log_mean_weight.float()


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
    """Put draws [R, K] at places [R], flat in [n, L], where they belong.

    Those of sequence i, which is row rows[i] of canvas [B, L], begin at starts[i] - starts[0]. The
    first E sequences get their complete candidates x0 [E, K, L], the others candidate 0 on the
    canvas. Returns xt [E, L], what x0 completes, and the sums [E, K] float32 of log_q, as
    `sum_log_probs` does, over positions from `first_position` on. A token -1 is placed as 0 and
    sets failed [B] to 1 at its sequence's row.
    """
    scored, length = len(x0), canvas.shape[1]
    xt = canvas[rows[:scored]]
    x0.copy_(xt[:, None].expand_as(x0))
    sums = torch.zeros(scored, tokens.shape[1], dtype=torch.float64, device=tokens.device)
    bounds = (starts - starts[0]).tolist()
    for i, row in enumerate(rows.tolist()):
        mine = slice(bounds[i], bounds[i + 1])
        position, drawn = places[mine] - i * length, tokens[mine]
        if i < scored:
            x0[i, :, position] = drawn.clamp(min=0).T
            sums[i] = on_grid(log_q[mine][position >= first_position]).sum(dim=0)
        else:
            drawn = drawn[:, 0]
            canvas[row, position] = drawn.clamp(min=0)
        if (drawn < 0).any():
            failed[row] = 1
    return xt, sums.float()


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
    """Choose one candidate of x0 [E, K, L] per sequence by `resample` of -energy / temperature.

    Its tokens at the places, cut by starts as in `place_candidates`, are revealed in canvas [B, L];
    ess and log_z [B, S] get the diagnostics at (rows, columns). Returns the choice [E] int64. Bad
    weights raise, so `failed` stays.
    """
    choice, ess[rows, columns], log_z[rows, columns] = resample(-energy / temperature, keys)
    bounds, length = (starts - starts[0]).tolist(), x0.shape[2]
    for i, row in enumerate(rows.tolist()):
        position = places[bounds[i] : bounds[i + 1]] - i * length
        canvas[row, position] = x0[i, choice[i], position]
    return choice


def sum_log_probs(log_probs: Tensor, sequences: int, starts: Tensor | None = None) -> Tensor:
    """The sum of log_probs [R] over each sequence, on a grid of 2^-30: [sequences] float64.

    Sequence i has those from starts[i] to starts[i + 1], or one of so many equal parts.
    """
    if starts is None:
        return on_grid(log_probs).view(sequences, -1).sum(dim=1)
    sizes = starts.diff().tolist()
    parts = on_grid(log_probs)[int(starts[0]) : int(starts[-1])].split(sizes)
    return torch.stack([part.sum() for part in parts])


def on_grid(log_probs: Tensor) -> Tensor:
    """Log-probabilities rounded to multiples of 2^-30, in float64.

    Up to 2^23 nats such numbers add without rounding: the order of a sum does not matter.
    """
    return torch.round(log_probs.double() * 2.0**30) * 2.0**-30


def reveal_steps(keys: Tensor, length: int, mask_probs: Tensor) -> Tensor:
    """Step in which each position is revealed: [B, length] int64 in 1..N+1.

    mask_probs [N + 1] float64 holds the mask probability at t_0 > ... > t_N and does not increase.
    Position l has the uniform u of stream (key, l), and is revealed in the step i with
    mask_probs[i] <= u < mask_probs[i - 1]; in N + 1 (left at t_N) if u < mask_probs[N]; in 1 if
    u >= mask_probs[0].
    """
    check(length >= 0, "length must be >= 0", length)
    check(
        mask_probs.dim() == 1 and mask_probs.dtype == torch.float64 and len(mask_probs) >= 2,
        "mask_probs must be float64 with shape [N + 1], N >= 1",
        describe(mask_probs),
    )
    falling = bool((mask_probs.diff() <= 0).all())
    check(falling, "mask_probs must not increase", mask_probs.tolist())
    check_int64("keys", keys, keys.numel())
    u = uniform(stream_keys(keys[:, None], torch.arange(length, device=keys.device)))
    at_or_below = torch.searchsorted(mask_probs.flip(0).contiguous(), u, right=True)
    return (len(mask_probs) - at_or_below).clamp(min=1)


def _head(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    logits = hidden.double() @ weight.double().T
    return logits if bias is None else logits + bias.double()
