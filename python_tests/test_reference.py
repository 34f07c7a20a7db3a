"""The specification itself: hand-computed values and exact frequencies. The ops are held to it."""

import math

import pytest
import torch
from op_cases import P_VALUE, g_test

from edlm_engine import reference


def test_philox_known_answers():
    """Random123's published vectors for philox4x32-10."""
    ones = 0xFFFFFFFF
    pi = (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344), (0xA4093822, 0x299F31D0)
    for counter, key, words in (
        ((0, 0, 0, 0), (0, 0), "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
        ((ones,) * 4, (ones,) * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
        (*pi, "d16cfe09 94fdcceb 5001e420 24126ea1"),
    ):
        assert " ".join(f"{int(w):08x}" for w in reference.philox(counter, key)) == words


def test_uniform_is_centred_and_open():
    bits = torch.tensor([0, 4095, 4096, -1, 2**63 - 1])
    want = [2.0**-53, 2.0**-53, 3 * 2.0**-53, 1 - 2.0**-53, 0.5 - 2.0**-53]
    assert reference.uniform(bits).tolist() == want


def test_stream_keys_fold_each_coordinate_in_its_place():
    seeds = torch.tensor([[5], [-1]])
    keys = reference.stream_keys(seeds, torch.arange(3), 2**40)
    assert keys.shape == (2, 3) and keys.dtype == torch.int64
    low = [(x & 0xFFFFFFFF, x >> 32 & 0xFFFFFFFF) for x in (5, 1, 2**40)]
    key = low[0]
    for index, coordinate in enumerate(low[1:]):
        w0, w1, *_ = reference.philox((*coordinate, index, 0x53545245), key)
        key = int(w0), int(w1)
    assert int(keys[0, 1]) & 2**64 - 1 == key[0] | key[1] << 32
    assert reference.stream_keys(1, 2, 3) != reference.stream_keys(1, 3, 2)
    assert torch.equal(reference.stream_keys(2**64 - 1, 3), reference.stream_keys(-1, 3))


def test_inverse_cdf_boundaries():
    weights = torch.tensor([[0.0, 1.0, 0.0, 2.0, 1.0, 0.0]], dtype=torch.float64)
    u = torch.tensor([[1e-300, 0.2499, 0.25, 0.7499, 0.75, 1.0]], dtype=torch.float64)
    # u = 1 stands for rounding overshoot: it ends at the last token with positive weight.
    assert reference.inverse_cdf(weights, u).tolist() == [[1, 1, 3, 3, 4, 4]]


def test_log_softmax_by_hand():
    logits = torch.tensor([[1.0, math.nan, 2.0, -math.inf]])
    want = torch.log_softmax(torch.tensor([0.5, 1.0], dtype=torch.float64), 0)
    got = reference.log_softmax(logits, forbidden_id=1, temperature=2.0)[0]
    assert torch.allclose(got[[0, 2]], want, rtol=0, atol=1e-15)
    assert got[[1, 3]].tolist() == [-math.inf, -math.inf]


def test_nucleus_keeps_ties_and_renormalises():
    logits = torch.tensor([[0.4, 0.2, 0.2, 0.2]], dtype=torch.float64).log()
    for top_p, kept in ((0.3, 1), (0.39, 1), (0.41, 4), (0.99, 4)):
        probs = reference.log_softmax(logits, top_p=top_p).exp()
        assert (probs > 0).sum() == kept and abs(probs.sum() - 1) < 1e-12


@pytest.mark.parametrize("options", [{}, {"temperature": 0.5}, {"top_p": 0.6}, {"forbidden_id": 4}])
def test_draws_follow_the_probabilities(options):
    logits = torch.tensor([0.3, -1.0, 2.0, 0.0, 1.0]).repeat(3, 1) * torch.tensor([[1], [2], [-1]])
    keys = reference.stream_keys(3, torch.arange(3))
    tokens, log_q = reference.sample_candidates(logits, keys, 20_000, **options)
    log_probs = reference.log_softmax(logits, **options)
    assert torch.equal(log_q, log_probs.gather(1, tokens).float())
    for row in range(3):
        assert g_test(tokens[row], log_probs[row].exp()) > P_VALUE


def test_head_ops_are_the_ops_of_the_product():
    generator = torch.Generator().manual_seed(0)
    hidden, weight = (torch.randn(n, 6, generator=generator) for n in (4, 9))
    bias = torch.randn(9, generator=generator)
    logits = hidden.double() @ weight.double().T + bias.double()
    keys = reference.stream_keys(0, torch.arange(4))
    options = {"forbidden_id": 8, "temperature": 0.7}
    targets = torch.tensor([0, 3, 8, 7])
    log_probs = reference.token_log_probs(logits, targets, **options)
    assert log_probs[2] == -math.inf
    assert torch.equal(
        log_probs,
        reference.head_token_log_probs(hidden, weight, targets, bias=bias, **options),
    )
    for ours, theirs in zip(
        reference.head_sample_candidates(hidden, weight, keys, 3, bias=bias, top_p=0.9, **options),
        reference.sample_candidates(logits, keys, 3, top_p=0.9, **options),
        strict=True,
    ):
        assert torch.equal(ours, theirs)


def test_resample_by_hand():
    log_weights = torch.tensor([[0.0, math.log(3), -math.inf], [-1000.0, -1000.0, -1000.0]])
    keys = reference.stream_keys(0, torch.arange(2))
    _, ess, log_mean = reference.resample(log_weights, keys)
    assert torch.allclose(ess, torch.tensor([16 / 10, 3.0]))
    assert torch.allclose(log_mean, torch.tensor([math.log(4 / 3), -1000.0]))
    keys = reference.stream_keys(0, torch.arange(20_000))
    choice, _, _ = reference.resample(log_weights[:1].expand(20_000, -1), keys)
    assert g_test(choice, torch.tensor([0.25, 0.75, 0.0])) > P_VALUE


def test_reveal_steps_bracket_the_uniform():
    mask_probs = torch.tensor([0.9, 0.6, 0.6, 0.2], dtype=torch.float64)
    keys = reference.stream_keys(1, torch.arange(50))
    steps = reference.reveal_steps(keys, 40, mask_probs)
    u = reference.uniform(reference.stream_keys(keys[:, None], torch.arange(40)))
    want = torch.full_like(steps, 3)
    want[u >= 0.6] = 1
    want[u < 0.2] = 4
    assert torch.equal(steps, want) and set(steps.unique().tolist()) == {1, 3, 4}


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda r, x, k: r.sample_candidates(x, k.float(), 2), r"keys must be int64 with shape \["),
        (lambda r, x, k: r.sample_candidates(x, k[1:], 2), r"shape \[4\], got int64 \[3\]"),
        (lambda r, x, k: r.sample_candidates(x, k, 0), "num_candidates must be >= 1, got 0"),
        (lambda r, x, k: r.sample_candidates(x, k, 1, temperature=0.0), "temperature must be in "),
        (lambda r, x, k: r.sample_candidates(x, k, 1, top_p=0.0), "top_p must be in"),
        (lambda r, x, k: r.sample_candidates(x, k, 1, forbidden_id=5), "forbidden_id must be in"),
        (lambda r, x, k: r.sample_candidates(x[0], k, 1), r"logits must have shape \[R, V\]"),
        (lambda r, x, k: r.token_log_probs(x, k * 0 + 5), r"targets row 0 must be in \[0, 5\)"),
        (lambda r, x, k: r.sample_candidates(x / 0, k, 1), "logits row 0 holds NaN or "),
        (lambda r, x, k: r.sample_candidates(x - math.inf, k, 1), "logits row 0 allows nothing"),
        (lambda r, x, k: r.resample(x * math.nan, k), "log_weights row 0 holds NaN"),
        (lambda r, x, k: r.resample(x - math.inf, k), "log_weights row 0 allows nothing"),
        (lambda r, x, k: r.reveal_steps(k, 3, torch.ones(3)), "mask_probs must be float64"),
        (lambda r, x, k: r.reveal_steps(k, 3, torch.arange(3.0).double()), "must not increase"),
        (lambda r, x, k: r.stream_keys(k.int()), "stream_keys wants int64"),
        (lambda r, x, k: r.stream_keys(2**64), "must fit 64 bits"),
    ],
)
def test_bad_input(call, message):
    logits = torch.ones(4, 5)
    keys = reference.stream_keys(0, torch.arange(4))
    with pytest.raises(RuntimeError, match=message):
        call(reference, logits, keys)
