"""The ops of a step, and those with the head, on arrays of any library."""

import sys

import numpy as np
import pytest
import torch
from stand_in import Cupy, StandIn

from edlm_engine import _C, arrays, head_arrays, ops

BATCH, CANDIDATES, LENGTH = 4, 3, 5


def placed(of, library, **changes):
    """Draws of three of four sequences, two of which take the energy: what the ops made of them."""
    tokens = torch.arange(6 * CANDIDATES).view(6, CANDIDATES)
    given = {
        "tokens": of(tokens),
        "log_q": of(-tokens.float() / 7),
        "places": of(torch.tensor([0, 3, 6, 7, 12, 14])),
        "starts": of(torch.tensor([2, 4, 6, 8])),
        "rows": of(torch.tensor([3, 0, 2])),
        "x0": of(torch.zeros(2, CANDIDATES, LENGTH, dtype=torch.int64)),
        "canvas": of(torch.full((BATCH, LENGTH), 99)),
        "failed": of(torch.zeros(BATCH, dtype=torch.int64)),
    } | changes
    xt, sums = library.place_candidates(*given.values(), first_position=1)
    ess, log_z = (of(torch.full((BATCH, 2), torch.nan)) for _ in range(2))
    choice = library.reveal_chosen(
        *(sums, of(torch.tensor([5, 6])), given["x0"], of(torch.tensor([0, 7]))),
        *(of(torch.tensor([0, 1, 2])), of(torch.tensor([3, 0])), of(torch.tensor([1, 0]))),
        *(given["canvas"], ess, log_z, given["failed"]),
        temperature=0.5,
    )
    whole = library.sum_log_probs(given["log_q"].reshape(-1), 6)
    cut = library.sum_log_probs(given["log_q"].reshape(-1), 2, of(torch.tensor([1, 4, 17])))
    return [xt, sums, given["x0"], given["canvas"], ess, log_z, choice, whole, cut]


def test_a_step_as_torch():
    want = placed(torch.clone, ops)
    for of in (lambda x: x.numpy().copy(), torch.clone):  # torch's come by DLPack
        for got, w in zip(placed(of, arrays), want, strict=True):
            assert np.asarray(got).dtype == w.numpy().dtype
            assert np.asarray(got).tobytes() == w.numpy().tobytes()
    assert 99 in want[3] and len(want[3].unique()) > 3


def test_a_row_that_could_not_be_drawn_from_is_noted():
    failed = np.zeros(BATCH, np.int64)
    tokens = np.zeros((6, CANDIDATES), np.int64)
    tokens[2, 1] = -1
    placed(lambda x: x.numpy().copy(), arrays, tokens=tokens, failed=failed)
    assert failed.tolist() == [1, 0, 0, 0]


@pytest.mark.parametrize(
    "changes",
    [
        {"tokens": np.zeros((6, CANDIDATES), np.float32)},
        {"tokens": np.zeros((6, 2 * CANDIDATES), np.int64)[:, ::2]},
        {"log_q": np.zeros((6, 2), np.float32)},
        {"places": np.array([0, 3, 6, 7, 12, 15])},
        {"places": np.arange(5)},
        {"starts": np.array([2, 4, 3, 8])},
        {"rows": np.array([3, 0, 4])},
        {"x0": np.zeros((4, CANDIDATES, LENGTH), np.int64)},
        {"canvas": np.zeros((BATCH, 2 * LENGTH), np.int64)[:, ::2]},
        {"failed": np.zeros(BATCH, np.float32)},
    ],
)
def test_what_torch_refuses_is_refused_in_the_same_words(changes):
    with pytest.raises(ValueError) as ours:
        placed(lambda x: x.numpy().copy(), arrays, **changes)
    theirs = {name: torch.from_numpy(x) for name, x in changes.items()}
    with pytest.raises(RuntimeError) as words:
        placed(torch.clone, ops, **theirs)
    assert str(ours.value) == str(words.value).splitlines()[0]


@pytest.mark.parametrize(
    ("log_probs", "arguments"),
    [
        (np.zeros(4), (2,)),
        (np.zeros((2, 2), np.float32), (2,)),
        (np.zeros(4, np.float32), (3,)),
        (np.zeros(4, np.float32), (-1,)),
        (np.zeros(4, np.float32), (1, np.array([0, 5]))),
        (np.zeros(4, np.float32), (2, np.array([0, 3, 2]))),
    ],
)
def test_sums_that_torch_refuses(log_probs, arguments):
    with pytest.raises(ValueError) as ours:
        arrays.sum_log_probs(log_probs, *arguments)
    tensors = [torch.from_numpy(x) if isinstance(x, np.ndarray) else x for x in arguments]
    with pytest.raises(RuntimeError) as theirs:
        ops.sum_log_probs(torch.from_numpy(log_probs), *tensors)
    assert str(ours.value) == str(theirs.value).splitlines()[0]


def test_energies_that_are_none():
    for bad, words in ((np.nan, "NaN or .inf"), (np.inf, "allows nothing")):
        with pytest.raises(ValueError, match=f"log_weights row 1 {words}|row 1 holds {words}"):
            arrays.reveal_chosen(
                *(np.array([[0.0], [bad]], np.float32), np.arange(2), np.zeros((2, 1, 1), int)),
                *(np.arange(2), np.arange(3), np.arange(2), np.zeros(2, int)),
                *(np.zeros((2, 1), int), np.zeros((2, 1), np.float32)),
                *(np.zeros((2, 1), np.float32), np.zeros(2, int)),
            )


def test_what_is_written_must_be_writable():
    canvas = np.full((BATCH, LENGTH), 99)
    canvas.flags.writeable = False
    with pytest.raises(ValueError, match="canvas is written, got a read-only array"):
        placed(lambda x: x.numpy().copy(), arrays, canvas=canvas)


# A launch upon host memory would end the process's use of its GPU.
@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU to launch on")
@pytest.mark.parametrize(
    ("call", "made"),
    [
        (
            lambda of: placed(of, arrays),
            [("int64", (2, LENGTH)), ("float32", (2, CANDIDATES))],
        ),
        (
            lambda of: arrays.reveal_chosen(
                *(of(torch.zeros(2, 1)), of(torch.arange(2)), of(torch.zeros(2, 1, 1).long())),
                *(of(torch.arange(2)), of(torch.arange(3)), of(torch.arange(2))),
                *(of(torch.zeros(2).long()), of(torch.zeros(2, 1).long())),
                *(of(torch.zeros(2, 1)), of(torch.zeros(2, 1)), of(torch.zeros(2).long())),
            ),
            [("int64", (2,))],
        ),
        (lambda of: arrays.sum_log_probs(of(torch.zeros(6)), 3), [("float64", (3,))]),
    ],
)
def test_up_to_the_launch(monkeypatch, call, made):
    cupy = Cupy()
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    launch = r"^CUDA error \d+$" if _C.build_info()["cuda"] else "no CUDA kernels"
    with pytest.raises(RuntimeError, match=launch):
        call(lambda x: StandIn(x.numpy()))
    assert cupy.log == [(1, 0x1230, *what) for what in made]


def test_arrays_of_two_devices_are_refused(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", Cupy())
    with pytest.raises(ValueError, match="canvas must be on the device of tokens"):
        placed(lambda x: StandIn(x.numpy()), arrays, canvas=np.zeros((BATCH, LENGTH), np.int64))


def operands(rows=7, width=6, vocab=40):
    generator = np.random.default_rng(0)
    floats = [generator.normal(size=s).astype(np.float32) for s in ((rows, width), (vocab, width))]
    return *floats, generator.normal(size=vocab).astype(np.float32), np.arange(rows)


@pytest.mark.parametrize("rows_at_once", [1, 3, 100])
def test_head(monkeypatch, rows_at_once):
    hidden, weight, bias, keys = operands()
    monkeypatch.setattr(head_arrays, "HEAD_WORKSPACE_BYTES", rows_at_once * 40 * 4)
    for added in (None, bias):
        logits = hidden @ weight.T + (0 if added is None else added)
        options = {"forbidden_id": 2, "temperature": 0.8}
        want = arrays.sample_candidates(logits, keys, 3, top_k=9, statistics=True, **options)
        got = arrays.head_sample_candidates(
            hidden, weight, keys, 3, bias=added, top_k=9, statistics=True, **options
        )
        assert np.array_equal(got[0], want[0])
        for g, w in zip(got[1:], want[1:], strict=True):
            np.testing.assert_allclose(g, w, rtol=0, atol=1e-5)
        scores = arrays.head_token_log_probs(hidden, weight, want[0][:, 0], bias=added, **options)
        np.testing.assert_allclose(
            scores, arrays.token_log_probs(logits, want[0][:, 0], **options), rtol=0, atol=1e-5
        )


def test_head_of_no_rows():
    hidden, weight, _, keys = operands(rows=0)
    tokens, log_q = arrays.head_sample_candidates(hidden, weight, keys, 3)
    assert tokens.shape == log_q.shape == (0, 3)


@pytest.mark.parametrize(
    ("changes", "error", "words"),
    [
        ({"hidden": np.zeros((7, 5), np.float32)}, ValueError, r"got \[7, 5\] and \[40, 6\]"),
        ({"bias": np.zeros(3, np.float32)}, ValueError, r"bias must have shape \[40\], got \[3\]"),
        ({"keys": np.arange(6)}, ValueError, r"keys must have shape \[7\], got \[6\]"),
        ({"keys": 3}, ValueError, r"keys must have shape \[7\], got int"),
        ({"weight": np.zeros((40, 6), np.float16)}, ValueError, "weight must be float32"),
        (
            {"weight": torch.zeros(40, 6)},
            TypeError,
            "weight must be an array of NumPy or CuPy.*Tensor",
        ),
        ({"top_k": "1"}, TypeError, "top_k must be an int"),
    ],
)
def test_heads_that_are_refused(changes, error, words):
    given = dict(zip(("hidden", "weight", "bias", "keys"), operands(), strict=True)) | changes
    with pytest.raises(error, match=words):
        arrays.head_sample_candidates(num_candidates=2, **given)
