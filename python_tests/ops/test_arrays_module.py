"""`edlm_engine.arrays`: the ops on arrays of any library, without torch."""

import subprocess
import sys
import threading

import ml_dtypes
import numpy as np
import pytest
import torch
from op_cases import random_logits
from stand_in import StandIn

from edlm_engine import arrays, ops

BF16 = torch.bfloat16


def equal(got, want):
    """Bit for bit, with the dtypes of torch, in NumPy arrays."""
    got, want = (x if isinstance(x, tuple) else (x,) for x in (got, want))
    assert len(got) == len(want)
    for g, w in zip(got, want, strict=True):
        assert type(g) is np.ndarray and g.dtype == w.numpy().dtype and g.shape == tuple(w.shape)
        assert g.tobytes() == w.numpy().tobytes()


class DLPackOnly:
    """An array of some library: DLPack, the old or the new way, and nothing else."""

    def __init__(self, tensor, versions):
        self.tensor, self.versions = tensor, versions

    def __dlpack_device__(self):
        return self.tensor.__dlpack_device__()

    def __dlpack__(self, **arguments):
        if not self.versions and arguments:
            raise TypeError(f"unexpected keyword arguments {sorted(arguments)}")
        return self.tensor.__dlpack__(**arguments)


def forms(tensor):
    """The numbers of a tensor as arrays of NumPy and of others."""
    yield tensor
    yield DLPackOnly(tensor, versions=True)
    yield DLPackOnly(tensor, versions=False)
    if tensor.dtype == BF16:
        bits = tensor.view(torch.uint16)
        yield from (bits, bits.numpy(), bits.numpy().view(ml_dtypes.bfloat16))
    else:
        yield tensor.numpy()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, BF16])
@pytest.mark.parametrize("wide", [False, True], ids=["dense", "strided rows"])
@pytest.mark.parametrize("threads", [1, 3])
def test_rows_as_torch(dtype, wide, threads):
    logits, keys = random_logits(20, 301, dtype), torch.arange(40)[::2]
    logits = logits[::2, :290] if wide else logits[:10]
    keys = keys[:10]
    options = {"forbidden_id": 5, "temperature": 0.9}
    want = ops.sample_candidates(logits, keys, 4, top_p=0.8, **options)
    targets = want[0][:, 1]
    scores = ops.token_log_probs(logits, targets, **options)
    q, redraw = logits.flip(0), {"forbidden_p": 5, "temperature_q": 1.2}
    redrawn = ops.residual_draw(logits, q, targets, keys, **redraw)
    options["threads"] = threads
    for given in forms(logits):
        for given_keys, given_targets in zip(forms(keys), forms(targets), strict=True):
            equal(arrays.sample_candidates(given, given_keys, 4, top_p=0.8, **options), want)
            equal(arrays.token_log_probs(given, given_targets, **options), scores)
            got = arrays.residual_draw(
                given, q, given_targets, given_keys, **redraw, threads=threads
            )
            equal(got, redrawn)


def test_small_ops_as_torch():
    keys, probs = torch.arange(7) * 99, torch.linspace(1, 0, 9, dtype=torch.float64)
    weights = torch.randn(14, 3, generator=torch.Generator().manual_seed(0))[::2]
    for k, w, p in zip(forms(keys), forms(weights), forms(probs), strict=True):
        equal(arrays.resample(w, k), ops.resample(weights, keys))
        equal(arrays.reveal_steps(k, 11, p), ops.reveal_steps(keys, 11, probs))


@pytest.mark.parametrize(
    "words",
    [
        lambda a, b: (a, b),
        lambda a, b: (a, b[:, None], 3),
        lambda a, b: (5, 2**64 - 1, a),
        lambda a, b: (-1, 2),
        lambda a, b: (a[::2], b[::2]),
        lambda a, b: (a,),
        lambda a, b: (a[:0], 1, 2),
        lambda a, b: (a[0], b[1]),
    ],
)
def test_stream_keys_broadcast_as_torch(words):
    a, b = torch.arange(6) - 2, torch.arange(6) * 1000
    want = ops.stream_keys(*words(a, b))
    equal(arrays.stream_keys(*words(a, b)), want)
    got = arrays.stream_keys(*words(a.numpy(), b.numpy()))  # a[0] is a NumPy integer here
    equal(got, want)


def test_what_comes_back_is_the_callers():
    seeds = np.arange(4)
    arrays.stream_keys(seeds)[0] = 9
    assert seeds[0] == 0


def test_nothing_is_copied_and_memory_is_released():
    """A view of 2^40 logits: a copy would not fit any machine."""
    logits = torch.zeros(1 << 10).expand(1 << 30, -1)
    for given in (logits, logits.numpy()):
        with pytest.raises(ValueError, match=r"keys must be int64 with shape \[1073741824\]"):
            arrays.sample_candidates(given, np.arange(3), 1)

    array = np.zeros((2, 3), np.float32)
    wrapped, before = DLPackOnly(array, versions=True), sys.getrefcount(array)
    for _ in range(10):
        arrays.sample_candidates(wrapped, np.arange(2), 1)
    assert sys.getrefcount(array) == before


def test_read_only_arrays_are_read():
    logits = random_logits(3, 20).numpy()
    want = arrays.sample_candidates(logits, np.arange(3), 2)
    logits.flags.writeable = False
    for given in (logits, DLPackOnly(logits, versions=True)):
        for got, w in zip(arrays.sample_candidates(given, np.arange(3), 2), want, strict=True):
            assert np.array_equal(got, w)


def test_the_gil_is_free_while_a_kernel_runs():
    """With a switch interval of an hour another thread runs only if the op lets go."""
    logits, keys = np.zeros((400, 50_000), np.float32), np.arange(400)
    ticks, done, ran = 0, False, []

    def op():
        nonlocal done
        for _ in range(50):
            before = ticks
            arrays.token_log_probs(logits, keys)
            ran.append(ticks > before)
            if ran[-1]:
                break
        done = True

    interval = sys.getswitchinterval()
    sys.setswitchinterval(3600)
    try:
        thread = threading.Thread(target=op)
        thread.start()
        while not done:
            ticks += 1
            threading.Event().wait(1e-4)  # lets go of the GIL
        thread.join()
    finally:
        sys.setswitchinterval(interval)
    assert ran[-1]


def test_without_torch():
    code = """
import sys
sys.modules["torch"] = None  # an import of torch fails
import numpy as np
from edlm_engine import arrays
keys = arrays.stream_keys(1, np.arange(3), 7)
tokens, log_q = arrays.sample_candidates(np.zeros((3, 9), np.float32), keys, 2)
assert np.allclose(log_q, -np.log(9))
scores = arrays.token_log_probs(np.zeros((3, 9), np.float32), tokens[:, 0])
assert np.array_equal(scores, log_q[:, 0])
arrays.residual_draw(log_q, log_q, tokens[:, 0] % 2, keys)
arrays.resample(log_q, keys), arrays.reveal_steps(keys, 4, np.array([1.0, 0.0]))
arrays.sum_log_probs(log_q[:, 0].copy(), 3)
arrays.head_token_log_probs(np.zeros((3, 2), np.float32), np.ones((9, 2), np.float32), keys % 9)
print(*sys.modules)
"""
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    loaded = run.stdout.split()
    assert "edlm_engine.arrays" in loaded and "cupy" not in loaded
    assert not [module for module in loaded if module.startswith("torch.")]


LOGITS, KEYS = np.zeros((3, 4), np.float32), np.arange(3)
PROBS = np.array([1.0, 0.0])


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda: arrays.sample_candidates([[1.0]], KEYS, 1), TypeError, "logits .*got list"),
        (lambda: arrays.sample_candidates(LOGITS, 3, 1), TypeError, "keys must be an array.*int"),
        (lambda: arrays.token_log_probs(LOGITS, None), TypeError, "targets must be.*NoneType"),
        (lambda: arrays.resample(LOGITS, [1]), TypeError, "keys must be an array.*list"),
        (lambda: arrays.resample(1.0, KEYS), TypeError, "log_weights must be an array.*float"),
        (lambda: arrays.reveal_steps(KEYS, 4, [1.0]), TypeError, "mask_probs must be an array"),
        (lambda: arrays.stream_keys([1]), TypeError, "seeds must be an array.*list"),
        (lambda: arrays.stream_keys(1, 2.5), TypeError, "coordinate 0 must be.*float"),
        (lambda: arrays.stream_keys(1, 2**64), ValueError, "must fit 64 bits"),
        (
            lambda: arrays.stream_keys(KEYS, KEYS, KEYS.astype(np.int32)),
            ValueError,
            r"coordinate 1 must be int64 or an int, got int32 \[3\]",
        ),
        (
            lambda: arrays.stream_keys(torch.zeros(2, dtype=BF16)),
            ValueError,
            r"seeds must be int64 or an int, got bfloat16 \[2\]",
        ),
        (lambda: arrays.sample_candidates(LOGITS, KEYS, 1.5), TypeError, "num_candidates .*1.5"),
        (lambda: arrays.sample_candidates(LOGITS, KEYS, 2**70), TypeError, "num_candidates"),
        (lambda: arrays.sample_candidates(LOGITS, KEYS, 1, top_p="1"), TypeError, "top_p .*'1'"),
        (lambda: arrays.sample_candidates(LOGITS, KEYS, 1, threads=0), ValueError, "threads"),
        (lambda: arrays.token_log_probs(LOGITS, KEYS, temperature=0), ValueError, "temperature"),
        (
            lambda: arrays.residual_draw(LOGITS, LOGITS[:2], KEYS, KEYS),
            ValueError,
            r"logits_q must be float32 with 3 rows, as logits_p, got float32 \[2, 4\]",
        ),
        (
            lambda: arrays.residual_draw(LOGITS, LOGITS, KEYS + 2, KEYS),
            ValueError,
            "draft row 2 is outside the vocabulary",
        ),
        (
            lambda: arrays.residual_draw(LOGITS, LOGITS, KEYS, KEYS, forbidden_q=0.5),
            TypeError,
            "forbidden_q must be an int.*0.5",
        ),
        (lambda: arrays.reveal_steps(KEYS, 1.0, PROBS), TypeError, "length must be an int"),
        (
            lambda: arrays.sample_candidates(torch.zeros(3, 4, dtype=torch.cfloat), KEYS, 1),
            ValueError,
            r"logits must be float32, bfloat16 .* or float16, got complex64 \[3, 4\]",
        ),
        (
            lambda: arrays.sample_candidates(LOGITS.astype("V4"), KEYS, 1),
            ValueError,
            r"logits must be float32.*got \|V4 \[3, 4\]",
        ),
        (
            lambda: arrays.resample(torch.zeros(3, 4, dtype=BF16), KEYS),
            ValueError,
            r"log_weights must be float32 .*got bfloat16 \[3, 4\]",
        ),
        (
            lambda: arrays.sample_candidates(LOGITS.view(ml_dtypes.bfloat16).byteswap().view(
                np.dtype(ml_dtypes.bfloat16).newbyteorder()), KEYS, 1),
            ValueError,
            "not this machine's byte order",
        ),
        (
            lambda: arrays.sample_candidates(torch.zeros(3, 4, requires_grad=True), KEYS, 1),
            ValueError,
            "logits could not be read through DLPack: .*require gradient",
        ),
        (
            lambda: arrays.sample_candidates(torch.zeros(3, 4, device="meta"), KEYS, 1),
            ValueError,
            "logits could not be read through DLPack",
        ),
        (
            lambda: arrays.sample_candidates(
                np.zeros(53, np.uint8)[1:49].view(np.float32).reshape(3, 4), KEYS, 1
            ),
            ValueError,
            "logits must lie at whole multiples of its elements' size",
        ),
    ],
)  # fmt: skip
def test_bad_arguments(call, error, words):
    with pytest.raises(error, match=words):
        call()


@pytest.mark.parametrize(
    "dlpack",
    [lambda **_: None, lambda **_: "dltensor", lambda: 1 / 0],
    ids=["None", "str", "raises"],
)
def test_a_broken_dlpack_is_named(dlpack):
    class Broken:
        def __dlpack_device__(self):
            return (1, 0)

        __dlpack__ = staticmethod(dlpack)

    with pytest.raises(ValueError, match="keys could not be read through DLPack: "):
        arrays.sample_candidates(LOGITS, Broken(), 1)


@pytest.mark.parametrize("kind", [4, 10, 14])
def test_other_devices_are_refused(kind):
    with pytest.raises(ValueError, match=f"logits .*device kind {kind}, wanted is 1 .* or 2"):
        arrays.sample_candidates(StandIn(LOGITS, kind=kind), KEYS, 1)
