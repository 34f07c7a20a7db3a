"""sample_candidates against one read of the logits, plain PyTorch, and the released sampler."""

import functools

import pytest
import torch

from bench import baselines
from edlm_engine import ops

# About 200 MB of float32 logits each, beyond any cache, but for the small vocabulary.
ROWS = {28: 65536, 4096: 8192, 50258: 1024, 152064: 340}
# The slow baselines run on fewer rows; ratios are per row.
FEW = 16


@functools.cache
def logits_of(vocab, dtype, device):
    generator = torch.Generator(device).manual_seed(0)
    logits = torch.randn(ROWS[vocab], vocab, generator=generator, device=device)
    return logits.to(dtype) * 3


CASES = {
    "logits.sum()": lambda x, keys: x.sum(),
    **{
        f"sample_candidates K={k}": lambda x, keys, k=k: ops.sample_candidates(
            x, keys, k, forbidden_id=x.shape[1] - 1
        )
        for k in (1, 2, 4, 8, 16)
    },
    **{
        f"sample_candidates K=8 {name}": lambda x, keys, law=law: ops.sample_candidates(
            x, keys, 8, forbidden_id=x.shape[1] - 1, **law
        )
        for name, law in {
            "top_p=0.9": {"top_p": 0.9},
            "top_k=50": {"top_k": 50},
            "min_p=0.05": {"min_p": 0.05},
            "top_k, top_p, min_p": {"top_k": 50, "top_p": 0.9, "min_p": 0.02},
            "statistics": {"statistics": True},
        }.items()
    },
    "softmax + multinomial K=8": lambda x, keys: baselines.softmax_multinomial(
        x, 8, x.shape[1] - 1
    ),
    "released race K=1": lambda x, keys: baselines.released_candidates(x, 1, x.shape[1] - 1),
    "released race K=8": lambda x, keys: baselines.released_candidates(x, 8, x.shape[1] - 1),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("logits_dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("vocab", ROWS)
def bench_sample_candidates(measure, device, vocab, logits_dtype, case):
    logits = logits_of(vocab, logits_dtype, device)
    if "released" in case:
        logits = logits[: max(FEW, ROWS[vocab] // 16)]
    keys = torch.arange(len(logits), device=device)
    measure(
        lambda: CASES[case](logits, keys),
        case,
        rows=len(logits),
        group=f"sample_candidates V={vocab} {logits_dtype}",
        rounds=3 if "released" in case else 9,
        bytes=logits.nbytes,
    )
