"""`edlm_engine.arrays` on CUDA: up to the launch by stand-ins anywhere, and by CuPy on a GPU."""

import sys

import numpy as np
import pytest
import torch
from op_cases import DTYPES, random_logits
from stand_in import Cupy, StandIn

from edlm_engine import _C, arrays, ops

STREAM = 0x1230  # of the stand-ins
PROBS = np.linspace(1, 0, 5)

# A launch upon host memory would end the process's use of its GPU.
without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to launch on")
# With kernels the launch itself fails for want of a device, without them there is none.
LAUNCH = r"^CUDA error \d+$" if _C.build_info()["cuda"] else "no CUDA kernels: build it with"


@pytest.fixture
def cupy(monkeypatch):
    fake = Cupy()
    monkeypatch.setitem(sys.modules, "cupy", fake)
    return fake


def logits_like(dtype=np.float32):
    return StandIn(np.zeros((3, 8), dtype)[:, :7])


@without_gpu
@pytest.mark.parametrize(
    ("call", "made"),
    [
        (
            lambda keys: arrays.sample_candidates(logits_like(), keys, 2),
            [("int64", (3, 2)), ("float32", (3, 2))],
        ),
        (lambda keys: arrays.token_log_probs(logits_like(np.float16), keys), [("float32", (3,))]),
        (
            lambda keys: arrays.residual_draw(logits_like(), logits_like(), keys, keys),
            [("int64", (3,)), ("bool", (3,)), ("float32", (3,))],
        ),
        (
            lambda keys: arrays.resample(StandIn(np.zeros((3, 2), np.float32)), keys),
            [("int64", (3,)), ("float32", (3,)), ("float32", (3,))],
        ),
        (lambda keys: arrays.reveal_steps(keys, 6, StandIn(PROBS)), [("int64", (3, 6))]),
        (lambda keys: arrays.stream_keys(keys, 5), [("int64", (3,))]),
    ],
)
def test_up_to_the_launch(cupy, call, made):
    keys = StandIn(np.arange(3))
    with pytest.raises(RuntimeError, match=LAUNCH):
        call(keys)
    assert cupy.log[: len(made)] == [(1, STREAM, *what) for what in made]
    # The workspace of a launch is made at the same place.
    assert all(what[:3] == (1, STREAM, "uint8") for what in cupy.log[len(made) :])
    assert set(keys.asked) == {STREAM}
    assert cupy.places == {"device": None, "stream": None}  # left as they were


@without_gpu
def test_the_stream_is_the_first_arrays(cupy):
    logits, keys = logits_like(), StandIn(np.arange(3), stream=0x9990)
    with pytest.raises(RuntimeError, match=LAUNCH):
        arrays.sample_candidates(logits, keys, 1)
    assert logits.asked == keys.asked == [STREAM]
    logits = StandIn(np.zeros((3, 7), np.float32), stream=None)
    with pytest.raises(RuntimeError, match=LAUNCH):
        arrays.sample_candidates(logits, keys, 1)
    assert logits.asked == [1] and cupy.log[-1][:2] == (1, 1)  # the legacy default stream


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (
            lambda keys: arrays.sample_candidates(logits_like(), np.arange(3), 1),
            ValueError,
            "keys must be on the device of logits",
        ),
        (
            lambda keys: arrays.sample_candidates(np.zeros((3, 4), np.float32), keys, 1),
            ValueError,
            "keys must be on the device of logits",
        ),
        (
            lambda keys: arrays.token_log_probs(logits_like(), StandIn(np.arange(3), device=0)),
            ValueError,
            "targets must be on the device of logits",
        ),
        (
            lambda keys: arrays.reveal_steps(keys, 3, PROBS),
            ValueError,
            "mask_probs must be on the device of keys",
        ),
        (
            lambda keys: arrays.stream_keys(keys, np.arange(3)),
            ValueError,
            "must lie on one device, got host and CUDA arrays",
        ),
        (
            lambda keys: arrays.sample_candidates(logits_like(np.float64), keys, 1),
            ValueError,
            r"logits must be float32, .*got float64 \[3, 7\]",
        ),
        (
            lambda keys: arrays.sample_candidates(logits_like(), StandIn(np.arange(6)[::2]), 1),
            ValueError,
            r"arrays on CUDA must be contiguous .*strides of \[16\] bytes for int64 \[3\]",
        ),
        (lambda keys: arrays.stream_keys(StandIn(np.zeros(2))), ValueError, "seeds must be int64"),
    ],
)
def test_what_is_refused(cupy, call, error, words):
    with pytest.raises(error, match=words):
        call(StandIn(np.arange(3)))
    assert cupy.log == []


def test_without_dlpack_or_cupy_the_error_says_so(monkeypatch):
    class InterfaceOnly:
        __cuda_array_interface__ = logits_like().__cuda_array_interface__

    with pytest.raises(TypeError, match="logits has __cuda_array_interface__ without __dlpack__"):
        arrays.sample_candidates(InterfaceOnly(), np.arange(3), 1)
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(ImportError, match="return CuPy arrays, and CuPy cannot be imported"):
        arrays.resample(StandIn(np.zeros((3, 2), np.float32)), StandIn(np.arange(3)))


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
@pytest.mark.parametrize("dtype", DTYPES)
def test_cupy_as_torch_on_a_gpu(dtype):
    cupy = pytest.importorskip("cupy")
    logits = random_logits(40, 4097, dtype, "cuda")
    keys = torch.arange(40, device="cuda")
    weights, probs = random_logits(40, 3, device="cuda"), torch.from_numpy(PROBS).cuda()
    want = ops.sample_candidates(logits, keys, 4)
    expected = [
        *want,
        ops.token_log_probs(logits, want[0][:, 0].contiguous()),
        *ops.residual_draw(logits, logits.flip(0), keys, keys),
        *ops.resample(weights, keys),
        ops.reveal_steps(keys, 9, probs),
        ops.stream_keys(keys, keys[:, None], 3),
    ]
    torch.cuda.synchronize()
    with cupy.cuda.Stream(non_blocking=True) as stream:
        # CuPy has no bfloat16: those logits stay torch's.
        rows = logits if dtype == torch.bfloat16 else cupy.from_dlpack(logits)
        names = cupy.from_dlpack(keys)
        tokens, log_q = arrays.sample_candidates(rows, names, 4)
        got = [
            tokens,
            log_q,
            arrays.token_log_probs(rows, cupy.ascontiguousarray(tokens[:, 0])),
            *arrays.residual_draw(rows, logits.flip(0), names, names),
            *arrays.resample(cupy.from_dlpack(weights), names),
            arrays.reveal_steps(names, 9, cupy.from_dlpack(probs)),
            arrays.stream_keys(names, names[:, None], 3),
        ]
        stream.synchronize()
    torch.cuda.synchronize()
    for g, w in zip(got, expected, strict=True):
        assert isinstance(g, cupy.ndarray)
        assert cupy.asnumpy(g).tobytes() == w.cpu().numpy().tobytes()
