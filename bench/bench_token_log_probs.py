"""token_log_probs against one read of the logits and plain PyTorch."""

import pytest
import torch

from bench import baselines
from bench.bench_sample_candidates import ROWS, logits_of
from edlm_engine import ops

CASES = {
    "logits.sum()": lambda x, targets: x.sum(),
    "token_log_probs": lambda x, targets: ops.token_log_probs(
        x, targets, forbidden_id=x.shape[1] - 1
    ),
    "log_softmax + gather": baselines.log_softmax_gather,
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("logits_dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("vocab", ROWS)
def bench_token_log_probs(measure, device, vocab, logits_dtype, case):
    logits = logits_of(vocab, logits_dtype, device)
    targets = torch.randint(0, vocab - 1, (len(logits),), device=device)
    measure(
        lambda: CASES[case](logits, targets),
        case,
        rows=len(logits),
        group=f"token_log_probs V={vocab} {logits_dtype}",
        bytes=logits.nbytes,
    )
