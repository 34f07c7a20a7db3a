"""The ops whose cost is per token, not per logit, against plain PyTorch."""

import functools
from types import SimpleNamespace

import pytest
import torch

from edlm_engine import ops, reference

BATCH, LENGTH, STEPS, K = 64, 1024, 1024, 16

CASES = {
    "resample": {
        "softmax + multinomial + ESS": lambda x: (
            (p := torch.softmax(x.log_weights, 1)).multinomial(1),
            1 / (p * p).sum(1),
            torch.logsumexp(x.log_weights, 1),
        ),
        "resample": lambda x: ops.resample(x.log_weights, x.keys),
    },
    "place_candidates": {
        "copy + scatter + sums": lambda x: (
            (x0 := x.x0.copy_(x.canvas[:, None]))
            .view(BATCH, K, -1)
            .scatter_(
                2, x.places.view(BATCH, 1, -1) % LENGTH, x.tokens.view(BATCH, -1, K).mT.clamp(min=0)
            ),
            reference.on_grid(x.log_q).view(BATCH, -1, K).sum(1).float(),
            x0,
        ),
        "place_candidates": lambda x: ops.place_candidates(
            x.tokens, x.log_q, x.places, x.starts, x.rows, x.x0, x.canvas, x.failed
        ),
    },
    "reveal_chosen": {
        "multinomial + gather + scatter": lambda x: (
            (p := torch.softmax(-x.energy, 1)),
            1 / (p * p).sum(1),
            torch.logsumexp(-x.energy, 1),
            x.canvas.view(-1).index_copy_(
                0,
                x.places,
                x.x0[x.rows, p.multinomial(1)[:, 0]].view(-1)[x.places],
            ),
        ),
        "reveal_chosen": lambda x: ops.reveal_chosen(
            x.energy,
            x.keys,
            x.x0,
            x.places,
            x.starts,
            x.rows,
            x.columns,
            x.canvas,
            x.ess,
            x.log_z,
            x.failed,
        ),
    },
    "sum_log_probs": {
        "round + sum in float64": lambda x: reference.on_grid(x.log_q).view(BATCH, -1).sum(1),
        "sum_log_probs": lambda x: ops.sum_log_probs(x.log_q.view(-1), BATCH),
    },
    "reveal_steps": {
        "rand + searchsorted": lambda x: torch.searchsorted(
            x.mask_probs.flip(0),
            torch.rand(BATCH, LENGTH, dtype=torch.float64, device=x.keys.device),
        ),
        "reveal_steps": lambda x: ops.reveal_steps(x.keys, LENGTH, x.mask_probs),
    },
    "stream_keys": {
        "torch.randint": lambda x: torch.randint(
            -(2**63), 2**63 - 1, (BATCH, LENGTH), device=x.keys.device
        ),
        "stream_keys": lambda x: ops.stream_keys(x.keys[:, None], 1, x.positions),
    },
}


@functools.cache
def inputs(device: torch.device) -> SimpleNamespace:
    half = LENGTH // 2
    return SimpleNamespace(
        # Half of each sequence is drawn, and revealed.
        places=torch.arange(BATCH * LENGTH, device=device).view(BATCH, LENGTH)[:, :half].flatten(),
        starts=torch.arange(0, BATCH * half + 1, half, device=device),
        tokens=torch.randint(0, 1000, (BATCH * half, K), device=device),
        log_q=-torch.rand(BATCH * half, K, device=device),
        energy=torch.randn(BATCH, K, device=device),
        x0=torch.zeros(BATCH, K, LENGTH, dtype=torch.int64, device=device),
        canvas=torch.zeros(BATCH, LENGTH, dtype=torch.int64, device=device),
        rows=torch.arange(BATCH, device=device),
        columns=torch.zeros(BATCH, dtype=torch.int64, device=device),
        ess=torch.zeros(BATCH, 1, device=device),
        log_z=torch.zeros(BATCH, 1, device=device),
        failed=torch.zeros(BATCH, dtype=torch.int64, device=device),
        keys=torch.arange(BATCH, device=device),
        positions=torch.arange(LENGTH, device=device),
        mask_probs=torch.linspace(1, 1e-5, STEPS + 1, dtype=torch.float64, device=device),
        log_weights=torch.randn(BATCH, K, device=device),
    )


@pytest.mark.parametrize(
    ("op", "case"), [(op, case) for op, cases in CASES.items() for case in cases]
)
def bench_small_op(measure, device, op, case):
    x, run = inputs(device), CASES[op][case]
    measure(lambda: run(x), case, group=f"{op} B={BATCH} L={LENGTH} N={STEPS} K={K}", rounds=50)
