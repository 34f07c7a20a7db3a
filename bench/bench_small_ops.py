"""The ops whose cost is per token, not per logit, against plain PyTorch."""

import functools
from types import SimpleNamespace

import pytest
import torch

from edlm_engine import ops

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
    return SimpleNamespace(
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
