"""sample_weights and its drop-in against one read of the probabilities and other ways to draw."""

import functools

import pytest
import torch

from bench import baselines
from edlm_engine import ops
from edlm_engine.drop_in import sample_categorical

# About 200 MB of float32 probabilities, beyond any cache. The slow ways run on fewer rows.
ROWS, FEW, VOCAB = 1024, 16, 50258


@functools.cache
def probs_of(dtype, device):
    generator = torch.Generator(device).manual_seed(0)
    logits = torch.randn(ROWS, VOCAB, generator=generator, device=device)
    return torch.softmax(logits * 3, dim=1).to(dtype)


CASES = {
    "probs.sum()": lambda p, keys: p.sum(),
    "sample_weights K=1": lambda p, keys: ops.sample_weights(p, keys, 1),
    "sample_weights K=8": lambda p, keys: ops.sample_weights(p, keys, 8),
    "drop_in.sample_categorical K=8": lambda p, keys: sample_categorical(p, 8),
    "softmax + multinomial K=8": lambda p, keys: baselines.softmax_multinomial(p, 8, 0),
    "multinomial K=8": lambda p, keys: torch.multinomial(p.float(), 8, replacement=True),
    "released race K=1": lambda p, keys: baselines.released_race(p, 1),
    "released race K=8": lambda p, keys: baselines.released_race(p, 8),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("probs_dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def bench_sample_weights(measure, device, probs_dtype, case):
    slow = "released" in case or "multinomial" in case
    probs = probs_of(probs_dtype, device)[: FEW if slow else ROWS]
    keys = torch.arange(len(probs), device=device)
    measure(
        lambda: CASES[case](probs, keys),
        case,
        rows=len(probs),
        group=f"sample_weights V={VOCAB} {probs_dtype}",
        rounds=3 if slow else 9,
        bytes=probs.nbytes,
    )
