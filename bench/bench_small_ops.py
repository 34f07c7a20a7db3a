"""The ops whose cost is per token, not per logit, against plain PyTorch."""

import pytest
import torch

from edlm_engine import ops

BATCH, LENGTH, STEPS, K = 64, 1024, 1024, 16

KEYS = torch.arange(BATCH)
MASK_PROBS = torch.linspace(1, 1e-5, STEPS + 1, dtype=torch.float64)
LOG_WEIGHTS = torch.randn(BATCH, K)

CASES = {
    "resample": {
        "softmax + multinomial + ESS": lambda: (
            (p := torch.softmax(LOG_WEIGHTS, 1)).multinomial(1),
            1 / (p * p).sum(1),
            torch.logsumexp(LOG_WEIGHTS, 1),
        ),
        "resample": lambda: ops.resample(LOG_WEIGHTS, KEYS),
    },
    "reveal_steps": {
        "rand + searchsorted": lambda: torch.searchsorted(
            MASK_PROBS.flip(0), torch.rand(BATCH, LENGTH, dtype=torch.float64)
        ),
        "reveal_steps": lambda: ops.reveal_steps(KEYS, LENGTH, MASK_PROBS),
    },
    "stream_keys": {
        "torch.randint": lambda: torch.randint(-(2**63), 2**63 - 1, (BATCH, LENGTH)),
        "stream_keys": lambda: ops.stream_keys(KEYS[:, None], 1, torch.arange(LENGTH)),
    },
}


@pytest.mark.parametrize(
    ("op", "case"), [(op, case) for op, cases in CASES.items() for case in cases]
)
def bench_small_op(measure, op, case):
    measure(CASES[op][case], case, group=f"{op} B={BATCH} L={LENGTH} N={STEPS} K={K}", rounds=50)
