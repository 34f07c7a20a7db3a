"""The first xt and the seeds: what is accepted, and no Python loop over sequences."""

import sys

import numpy as np
import pytest
import torch

from edlm_engine import ops
from edlm_engine.sampling.canvas import known_tokens, sequence_seeds

MASK = 9


def compose(prompt=None, suffix=None, batch_size=2, length=5, **options):
    options = {"mask_id": MASK, "vocab_size": 10, **options}
    known = known_tokens(prompt, suffix, batch_size, **options)
    return known.canvas(batch_size, length, options["mask_id"])


@pytest.mark.parametrize(
    ("prompt", "suffix", "wanted"),
    [
        (None, None, [[9, 9, 9, 9, 9]] * 2),
        ([1, 2], [3], [[1, 2, 9, 9, 3]] * 2),
        ([[1], [2, 3]], None, [[1, 9, 9, 9, 9], [2, 3, 9, 9, 9]]),
        ([[], [4]], [[5, 6], []], [[9, 9, 9, 5, 6], [4, 9, 9, 9, 9]]),
        (torch.tensor([[1, 2], [3, 4]]), np.array([7, 8]), [[1, 2, 9, 7, 8], [3, 4, 9, 7, 8]]),
        ((np.int64(1), 2), range(3), [[1, 2, 0, 1, 2]] * 2),
        ([torch.tensor([1]), np.array([2, 3])], None, [[1, 9, 9, 9, 9], [2, 3, 9, 9, 9]]),
        ("ab", ["c", "de"], [[1, 2, 9, 9, 3], [1, 2, 9, 4, 5]]),
    ],
)
def test_known_tokens_lie_at_the_ends(prompt, suffix, wanted):
    class Letters:
        def encode(self, text):
            return [ord(letter) - 96 for letter in text]

    assert compose(prompt, suffix, tokenizer=Letters()).tolist() == wanted


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        (b"ab", TypeError, "prompt must be text or integer tokens, got b'ab'"),
        (memoryview(b"ab"), TypeError, "prompt must be text or integer tokens"),
        ([b"a", b"b"], TypeError, "prompt must be text or integer tokens, got b'a'"),
        ([2**70], ValueError, "prompt must hold numbers of 64 bits, got 1180591620717411303424"),
        ([[1], [2**70]], ValueError, "prompt must hold numbers of 64 bits"),
        ([0.5, 1], TypeError, "prompt must be text or integer tokens"),
        (torch.zeros(5), TypeError, "prompt must be text or integer tokens"),
        (torch.zeros(3, 2), TypeError, "prompt must be text or integer tokens"),
        ({1, 2}, TypeError, "prompt must be text or integer tokens"),
        (torch.zeros(3, 2).long(), ValueError, "prompt must hold 2 rows, one per sequence, got 3"),
    ],
)
def test_what_is_no_token_is_named(prompt, error, message):
    with pytest.raises(error, match=message):
        compose(prompt)


def test_a_long_wrong_value_is_shown_by_its_start():
    with pytest.raises(TypeError) as caught:
        compose([0.5] * 10_000)
    assert len(str(caught.value)) < 200


@pytest.mark.parametrize(
    "seeds",
    [
        [5, -7, 2**64 - 1],
        torch.tensor([5, -7, -1]),
        np.array([5, -7, -1]),
        np.array([5, 2**64 - 7, 2**64 - 1], dtype=np.uint64),
    ],
)
def test_seeds_are_words_of_64_bits(seeds):
    wanted = torch.tensor([5, -7, -1])
    assert torch.equal(sequence_seeds(seeds, 3), ops.stream_keys(wanted))


@pytest.mark.parametrize("seed", [b"abc", "abc", [0.5, 1], torch.zeros(2), None, [[1], [2]]])
def test_what_is_no_seed_is_named(seed):
    with pytest.raises(TypeError, match="seed must be an int or one int per sequence"):
        sequence_seeds(seed, 2)


def python_calls(function):
    calls = 0

    def count(frame, event, argument):
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        function()
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize(
    "work",
    [
        lambda batch: compose([1], [2, 3], batch),
        lambda batch: compose(torch.ones(batch, 2).long(), None, batch),
        lambda batch: sequence_seeds(7, batch),
        lambda batch: sequence_seeds(torch.arange(batch), batch),
    ],
)
def test_no_python_runs_per_sequence(work):
    work(3)
    assert python_calls(lambda: work(1000)) <= python_calls(lambda: work(10)) + 5
