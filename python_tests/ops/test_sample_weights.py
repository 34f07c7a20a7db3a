import math

import pytest
import torch
from op_cases import DTYPES, P_VALUE, VOCABS, g_test, poisoned_rows
from scipy import stats

from edlm_engine import arrays, ops, reference


def keys_for(rows, device="cpu", seed=5):
    return ops.stream_keys(seed, torch.arange(rows, device=device))


def random_weights(rows, vocab, dtype=torch.float32, spread=3.0):
    """Positive numbers over many magnitudes, every seventh of them 0 (never a row's only one)."""
    generator = torch.Generator().manual_seed(1000 * vocab + rows)
    weights = (torch.randn(rows, vocab, generator=generator) * spread - 2).exp().clamp(max=6e4)
    weights[:, 1::7] = 0
    return weights.to(dtype)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", VOCABS)
def test_tokens_and_log_q_match_reference(vocab, dtype, device):
    weights, keys = random_weights(33, vocab, dtype), keys_for(33)
    want, want_log_q = reference.sample_weights(weights, keys, 5)
    tokens, log_q = ops.sample_weights(poisoned_rows(weights.to(device)), keys.to(device), 5)
    tokens, log_q = tokens.cpu(), log_q.cpu()
    # A uniform within rounding of a boundary (one in ~10^6) may take the neighbour.
    assert (tokens != want).sum() <= 1
    assert (log_q - want_log_q)[tokens == want].abs().max() <= 1e-6
    assert (log_q <= 0).all() and (weights.gather(1, tokens) > 0).all()


def test_the_same_tokens_as_from_logits(device):
    weights, keys = random_weights(60, 5003).to(device), keys_for(60, device)
    tokens, log_q = ops.sample_weights(weights, keys, 7)
    by_logits, by_logits_log_q = ops.sample_candidates(weights.log(), keys, 7)
    same = tokens == by_logits
    assert (~same).sum() <= 1 and (log_q - by_logits_log_q)[same].abs().max() < 2e-6


@pytest.mark.parametrize("vocab", [2, 28, 4097, 50258])
def test_frequencies(vocab, device):
    weights = random_weights(2, vocab)
    tokens, _ = ops.sample_weights(weights.to(device), keys_for(2, device), 200_000)
    for row in range(2):
        probs = weights[row].double() / weights[row].double().sum()
        assert g_test(tokens[row].cpu(), probs) > P_VALUE


TAIL, GAP = 262_144, 20.5


def test_many_tail_race(device):
    """The tail is drawn as often as it should be, evenly, down to its single tokens."""
    weights = torch.full((1, TAIL + 1), math.exp(-GAP))
    weights[0, TAIL // 3] = 1.0
    draws = 2_000_000
    tokens, _ = ops.sample_weights(weights.to(device), keys_for(1, device), draws)
    tail = tokens[tokens != TAIL // 3].cpu()
    p = TAIL * math.exp(-GAP) / (1 + TAIL * math.exp(-GAP))
    assert stats.binomtest(len(tail), draws, p).pvalue > P_VALUE
    halves = [(tail < TAIL // 2).sum().item(), (tail >= TAIL // 2).sum().item()]
    assert stats.binomtest(halves[0], sum(halves), 0.5).pvalue > P_VALUE


@pytest.mark.parametrize("scale", [2.0**-140, 2.0**-100, 2.0**80])
def test_any_scale(scale, device):
    """Weights need no common scale: subnormal floats are exact, and huge ones do not overflow."""
    weights = torch.arange(5, dtype=torch.float32).repeat(200)[None] * scale
    keys = keys_for(1, device)
    tokens, log_q = ops.sample_weights(weights.to(device), keys, 20_000)
    unscaled, unscaled_log_q = ops.sample_weights(weights.to(device) / scale, keys, 20_000)
    assert torch.equal(tokens, unscaled)
    assert torch.allclose(log_q, unscaled_log_q, atol=1e-6)
    assert g_test(tokens[0].cpu() % 5, torch.arange(5) / 10) > P_VALUE


def test_a_candidate_does_not_depend_on_k(device):
    weights, keys = random_weights(9, 300).to(device), keys_for(9, device)
    all_tokens, all_log_q = ops.sample_weights(weights, keys, 17)
    for k in (1, 2, 16):
        tokens, log_q = ops.sample_weights(weights, keys, k)
        assert torch.equal(tokens, all_tokens[:, :k]) and torch.equal(log_q, all_log_q[:, :k])


def test_a_row_does_not_depend_on_its_batch_its_threads_or_its_stride(device):
    weights, keys = random_weights(40, 5001).to(device), keys_for(40, device)
    whole = ops.sample_weights(weights, keys, 3)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1)).to(device)
    shuffled = ops.sample_weights(weights[order], keys[order], 3)
    strided = ops.sample_weights(poisoned_rows(weights), keys, 3)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = ops.sample_weights(weights, keys, 3)
    finally:
        torch.set_num_threads(threads)
    for part in range(2):
        assert torch.equal(whole[part][order], shuffled[part])
        assert torch.equal(whole[part], strided[part])
        assert torch.equal(whole[part], single[part])


def test_no_rows(device):
    tokens, log_q = ops.sample_weights(torch.empty(0, 9, device=device), keys_for(0, device), 3)
    assert tokens.shape == log_q.shape == (0, 3)


def test_negative_zero_is_zero(device):
    weights = torch.tensor([[-0.0, 1.0, -0.0, 3.0]]).to(device)
    tokens, log_q = ops.sample_weights(weights, keys_for(1, device), 400)
    assert set(tokens[0].tolist()) == {1, 3}
    assert torch.allclose(log_q[tokens == 1].cpu(), torch.tensor(-math.log(4)))


BAD = {
    "NaN": (torch.nan, "NaN, a negative number or"),
    "+inf": (torch.inf, "NaN, a negative number or"),
    "negative": (-1e-30, "NaN, a negative number or"),
    "-inf": (-torch.inf, "NaN, a negative number or"),
    "huge": (3e38, "sums to more than float32 holds"),
    "nothing": (0.0, "allows nothing: every entry is 0"),
}


@pytest.mark.parametrize("case", BAD)
@pytest.mark.parametrize("vocab", [4, 2048, 3000])
@pytest.mark.parametrize("at", [0, -1, -3])
def test_bad_rows(case, vocab, at, device):
    value, message = BAD[case]
    weights = torch.ones(3, vocab)
    if case in ("huge", "nothing"):
        weights[1] = 0
        weights[1, [at, 2]] = value
    else:
        weights[1, at] = value
    for check in (reference.sample_weights, ops.sample_weights):
        with pytest.raises(RuntimeError, match=f"weights row 1 .*{message}"):
            check(weights, keys_for(3), 2)
    if device == "cuda":
        tokens, log_q = ops.sample_weights(weights.cuda(), keys_for(3, device), 2)
        assert (tokens[1] == -1).all() and log_q[1].isnan().all()
        assert (tokens[[0, 2]] >= 0).all() and not log_q[[0, 2]].isnan().any()


def test_bad_arguments():
    weights, keys = torch.ones(7, 5), keys_for(7)
    sample = ops.sample_weights
    with pytest.raises(RuntimeError, match=r"keys must be int64 .*\[7\], got float32 \[7\]"):
        sample(weights, keys.float(), 1)
    with pytest.raises(RuntimeError, match=r"weights must be .*float16, got float64"):
        sample(weights.double(), keys, 1)
    with pytest.raises(RuntimeError, match=r"weights must have shape \[rows, vocab\]"):
        sample(weights[0], keys, 1)
    with pytest.raises(RuntimeError, match=r"weights must be contiguous .*got stride 7"):
        sample(torch.ones(5, 7).T, keys, 1)
    with pytest.raises(RuntimeError, match="num_candidates must be at least 1, got 0"):
        sample(weights, keys, 0)


def test_no_gradient():
    weights = random_weights(3, 5).requires_grad_()
    _, log_q = ops.sample_weights(weights, keys_for(3), 2)
    with pytest.raises(RuntimeError, match="sample_weights has no gradient: gather the weights"):
        log_q.sum().backward()


def test_opcheck_and_compile():
    weights, keys = random_weights(4, 300, torch.bfloat16), keys_for(4)
    torch.library.opcheck(torch.ops.edlm.sample_weights.default, (weights, keys, 3))
    step = torch.compile(
        lambda w, k: ops.sample_weights(w * 2, k, 4), fullgraph=True, backend="aot_eager"
    )
    for got, want in zip(
        step(weights, keys), ops.sample_weights(weights * 2, keys, 4), strict=True
    ):
        assert torch.equal(got, want)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_arrays_as_torch(dtype):
    weights, keys = random_weights(20, 301, dtype)[::2, :290], torch.arange(10)
    want = ops.sample_weights(weights, keys, 4)
    for threads in (1, 3):
        got = arrays.sample_weights(weights.numpy(), keys.numpy(), 4, threads=threads)
        for g, w in zip(got, want, strict=True):
            assert g.tobytes() == w.numpy().tobytes()
    with pytest.raises(ValueError, match="weights row 1 allows nothing: every entry is 0"):
        arrays.sample_weights(torch.tensor([[1.0], [0.0]]), keys[:2], 1)
