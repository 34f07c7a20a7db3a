"""The entry points of `_C` check as the torch ops do."""

import numpy as np
import pytest
import torch
from op_cases import random_logits

from edlm_engine import _C


def test_errors():
    logits, keys = np.zeros((3, 4), np.float32), np.arange(3)
    with pytest.raises(ValueError, match=r"keys must be int64 with shape \[3\], got int64 \[2\]"):
        _C.sample_candidates(logits, keys[:2], 1)
    with pytest.raises(
        ValueError, match=r"logits must be float32, bfloat16 .* or float16, got float64"
    ):
        _C.sample_candidates(logits.astype(float), keys, 1)
    logits[2, 1] = np.nan
    with pytest.raises(ValueError, match="logits row 2 holds NaN"):
        _C.sample_candidates(logits, keys, 1, threads=2)
    with pytest.raises(ValueError, match="targets row 1 is outside the vocabulary"):
        _C.token_log_probs(np.zeros((3, 4), np.float32), np.array([0, 4, 0]))


@pytest.mark.parametrize(
    ("op", "given"),
    [
        ("stream_keys", lambda i, f: [(i[:, None], i), (i, i[:, None].astype(np.int32))]),
        ("sample_candidates", lambda i, f: [(f[0], i, 1), (f, i.astype(np.int32), 1), (f, i, 0)]),
        ("sample_candidates", lambda i, f: [(f[:, ::2], i, 1), (f[:2], i, 1), (f[:, :0], i, 1)]),
        ("token_log_probs", lambda i, f: [(f, i[:2]), (f, f[:, 0]), (f, i + 9), (f * np.nan, i)]),
        (
            "residual_draw",
            lambda i, f: [
                *((f, f[:2], i, i), (f, f.astype(np.float16), i, i), (f, f[0], i, i)),
                *((f, f, i[:2], i), (f, f, i, f[:, 0]), (f, f, i - 1, i), (f, f * np.nan, i, i)),
            ],
        ),
        ("resample", lambda i, f: [(f, i[:2]), (f.astype(float), i), (f[:, :0], i), (f[0], i)]),
        (
            "reveal_steps",
            lambda i, f: [
                (i, 4, np.array([1.0, 0.5, 0.7])),  # rises
                (i, 4, np.array([1.0, np.nan, 0.0])),
                (i, 4, np.array([1.5, 0.0])),
                (i, 4, np.array([1.0])),
                (i, 4, np.array([1, 0])),
                (i, -1, np.array([1.0, 0.0])),
                (i[:, None], 4, np.array([1.0, 0.0])),
            ],
        ),
    ],
)
def test_what_torch_refuses_is_refused_in_the_same_words(op, given):
    for arrays in given(np.arange(3), np.zeros((3, 4), np.float32)):
        with pytest.raises(ValueError) as ours:
            getattr(_C, op)(*arrays)
        tensors = [torch.from_numpy(x) if isinstance(x, np.ndarray) else x for x in arrays]
        tensors += {
            "sample_candidates": [-1, 1.0, 1.0],
            "token_log_probs": [-1, 1.0],
            "residual_draw": [-1, -1, 1.0, 1.0],
        }.get(op, [])
        with pytest.raises(RuntimeError) as theirs:
            getattr(torch.ops.edlm, op)(*tensors)
        assert str(ours.value) == str(theirs.value).splitlines()[0]


@pytest.mark.parametrize("name", ["logits", "keys", "targets", "log_weights", "mask_probs"])
def test_foreign_byte_order_is_refused(name):
    arrays = {
        "logits": np.zeros((3, 4), np.float32),
        "keys": np.arange(3),
        "targets": np.arange(3),
        "log_weights": np.zeros((3, 4), np.float32),
        "mask_probs": np.linspace(1, 0, 5),
    }
    arrays[name] = arrays[name].astype(arrays[name].dtype.newbyteorder())
    logits, keys, targets, log_weights, mask_probs = arrays.values()
    with pytest.raises(ValueError, match=f"{name} must be .*not this machine's byte order"):
        _C.sample_candidates(logits, keys, 1)
        _C.token_log_probs(logits, targets)
        _C.resample(log_weights, keys)
        _C.reveal_steps(keys, 4, mask_probs)


def test_rows_between_elements_are_refused():
    records = np.zeros(3, dtype=[("logits", np.float32, 4), ("more", np.uint16)])
    assert records["logits"].strides == (18, 4)
    with pytest.raises(ValueError, match="strides must be whole elements, got 18 bytes"):
        _C.sample_candidates(records["logits"], np.arange(3), 1)


def test_any_strides_of_keys():
    keys = np.arange(12)[::-4]
    logits = random_logits(3, 50).numpy()
    for x in (logits, logits[::-1]):
        for got, want in zip(
            _C.sample_candidates(x, keys, 2),
            _C.sample_candidates(x.copy(), keys.copy(), 2),
            strict=True,
        ):
            assert np.array_equal(got, want)
