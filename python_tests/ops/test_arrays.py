"""The NumPy entry points of `_C` and the torch ops are the same kernels."""

import numpy as np
import pytest
import torch
from op_cases import random_logits

from edlm_engine import _C, ops


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("threads", [1, 3])
def test_same_as_torch(dtype, threads):
    logits, keys = random_logits(20, 301, dtype), torch.arange(20)
    array = logits.view(torch.uint16).numpy() if dtype == torch.bfloat16 else logits.numpy()
    options = {"forbidden_id": 5, "temperature": 0.9}
    tokens, log_q = _C.sample_candidates(array, keys.numpy(), 4, threads=threads, **options)
    want = ops.sample_candidates(logits, keys, 4, **options)
    assert np.array_equal(tokens, want[0].numpy()) and np.array_equal(log_q, want[1].numpy())
    scores = _C.token_log_probs(array, tokens[:, 0].copy(), threads=threads, **options)
    assert np.array_equal(scores, ops.token_log_probs(logits, want[0][:, 0], **options).numpy())


def test_small_ops():
    keys = torch.arange(7)
    weights = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    for got, want in zip(
        _C.resample(weights.numpy(), keys.numpy()), ops.resample(weights, keys), strict=True
    ):
        assert np.array_equal(got, want.numpy())
    probs = torch.linspace(1, 0, 9, dtype=torch.float64)
    got = _C.reveal_steps(keys.numpy(), 11, probs.numpy())
    assert np.array_equal(got, ops.reveal_steps(keys, 11, probs).numpy())
    got = _C.stream_keys(keys.numpy(), keys.numpy()[:, None])
    assert np.array_equal(got, ops.stream_keys(keys, keys).numpy())


def test_errors():
    logits, keys = np.zeros((3, 4), np.float32), np.arange(3)
    with pytest.raises(ValueError, match=r"keys must have shape \[3\]"):
        _C.sample_candidates(logits, keys[:2], 1)
    with pytest.raises(ValueError, match=r"logits must be float32, float16 or uint16 .*float64"):
        _C.sample_candidates(logits.astype(float), keys, 1)
    logits[2, 1] = np.nan
    with pytest.raises(ValueError, match="logits row 2 holds NaN"):
        _C.sample_candidates(logits, keys, 1, threads=2)
    with pytest.raises(ValueError, match="targets row 1 is outside the vocabulary"):
        _C.token_log_probs(np.zeros((3, 4), np.float32), np.array([0, 4, 0]))
