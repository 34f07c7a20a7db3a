import math

import pytest
import torch
from op_cases import DTYPES, P_VALUE, VOCABS, g_test, poisoned_rows, random_logits
from scipy import stats

from bench.baselines import released_race
from edlm_engine import ops, reference


def keys_for(rows, device="cpu", seed=5):
    return ops.stream_keys(seed, torch.arange(rows, device=device))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7}, {"forbidden_id": -2}])
def test_tokens_and_log_q_match_reference(vocab, dtype, options, device):
    options = dict(options)
    if "forbidden_id" in options:
        options["forbidden_id"] = vocab // 3
        if vocab == 1:
            return  # nothing would be left; see test_bad_rows
    logits = random_logits(33, vocab, dtype)
    keys = keys_for(33)
    want_tokens, _ = reference.sample_candidates(logits, keys, 5, **options)
    tokens, log_q = ops.sample_candidates(
        poisoned_rows(logits.to(device)), keys.to(device), 5, **options
    )
    tokens, log_q = tokens.cpu(), log_q.cpu()
    # A uniform within rounding of a boundary (one in ~10^6) may take the neighbour.
    assert (tokens != want_tokens).sum() <= 1
    exact = reference.log_softmax(logits, **options).gather(1, tokens)
    scaled = logits.float() / options.get("temperature", 1.0)
    if "forbidden_id" in options:
        scaled[:, options["forbidden_id"]] = -torch.inf
    plain = torch.log_softmax(scaled, dim=1).gather(1, tokens)
    assert (log_q - exact).abs().max() <= (plain - exact).abs().max() + 1e-6
    assert (log_q <= 0).all()


@pytest.mark.parametrize("vocab", [2, 28, 4097, 50258])
@pytest.mark.parametrize("options", [{}, {"temperature": 1.7}, {"top_p": 0.8}])
def test_frequencies(vocab, options, device):
    logits = random_logits(2, vocab)
    tokens, _ = ops.sample_candidates(
        logits.to(device), keys_for(2, device), 200_000, forbidden_id=0, **options
    )
    for row in range(2):
        probs = reference.log_softmax(logits[row : row + 1], 0, **options)[0].exp()
        assert g_test(tokens[row].cpu(), probs) > P_VALUE


def test_g_test_sees_a_wrong_temperature():
    logits = random_logits(1, 4097)
    tokens, _ = ops.sample_candidates(logits, keys_for(1), 200_000, temperature=1.02)
    assert g_test(tokens[0], reference.log_softmax(logits)[0].exp()) < 1e-6


TAIL, GAP = 262_144, 18.0
TAIL_PROBABILITY = TAIL * math.exp(-GAP) / (1 + TAIL * math.exp(-GAP))


def many_tail_logits(gap=GAP):
    """One head token and a tail that is frequent only as a whole."""
    logits = torch.full((1, TAIL + 1), -gap)
    logits[0, TAIL // 3] = 0.0
    return logits


@pytest.mark.parametrize("gap", [18.0, 20.5])
def test_many_tail_race(gap, device):
    draws = 2_000_000
    tokens, _ = ops.sample_candidates(many_tail_logits(gap).to(device), keys_for(1, device), draws)
    tail = tokens[tokens != TAIL // 3].cpu()
    p = TAIL * math.exp(-gap) / (1 + TAIL * math.exp(-gap))
    assert stats.binomtest(len(tail), draws, p).pvalue > P_VALUE
    # And evenly over the tail, not only near the head's cell.
    halves = [(tail < TAIL // 2).sum().item(), (tail >= TAIL // 2).sum().item()]
    assert stats.binomtest(halves[0], sum(halves), 0.5).pvalue > P_VALUE
    # And by every token of it: a uniform of 24 bits could reach only a quarter of them, and would
    # repeat itself four times as often.
    repeats = len(tail) - len(tail.unique())
    expected = len(tail) ** 2 / 2 / TAIL
    assert abs(repeats - expected) < 5 * max(1, expected) ** 0.5


def test_many_tail_race_catches_the_released_sampler():
    torch.manual_seed(0)
    probs = torch.softmax(many_tail_logits(), dim=-1).expand(50, -1)
    trials = 4000
    hits = sum(
        int((released_race(probs) != TAIL // 3).sum()) for _ in range(trials // probs.shape[0])
    )
    assert stats.binomtest(hits, trials, TAIL_PROBABILITY, "less").pvalue < P_VALUE


def test_a_candidate_does_not_depend_on_k(device):
    logits, keys = random_logits(9, 300).to(device), keys_for(9, device)
    all_tokens, all_log_q = ops.sample_candidates(logits, keys, 17)
    for k in (1, 2, 16):
        tokens, log_q = ops.sample_candidates(logits, keys, k)
        assert torch.equal(tokens, all_tokens[:, :k]) and torch.equal(log_q, all_log_q[:, :k])


def test_candidates_are_independent(device):
    logits = random_logits(1, 4, scale=0.5).to(device).expand(100_000, 4)
    tokens, _ = ops.sample_candidates(logits, keys_for(100_000, device), 2)
    table = torch.zeros(4, 4).index_put_(
        (tokens[:, 0].cpu(), tokens[:, 1].cpu()), torch.tensor(1.0), accumulate=True
    )
    assert stats.chi2_contingency(table.numpy()).pvalue > P_VALUE


def test_a_row_does_not_depend_on_its_batch_its_threads_or_its_stride(device):
    logits, keys = random_logits(40, 5001).to(device), keys_for(40, device)
    whole = ops.sample_candidates(logits, keys, 3)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1)).to(device)
    shuffled = ops.sample_candidates(logits[order], keys[order], 3)
    strided = ops.sample_candidates(poisoned_rows(logits), keys, 3)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        single = ops.sample_candidates(logits, keys, 3)
    finally:
        torch.set_num_threads(threads)
    alone = [ops.sample_candidates(logits[i : i + 1], keys[i : i + 1], 3) for i in range(40)]
    for part in range(2):
        assert torch.equal(whole[part][order], shuffled[part])
        assert torch.equal(whole[part], strided[part])
        assert torch.equal(whole[part], single[part])
        assert torch.equal(whole[part], torch.cat([row[part] for row in alone]))


def test_expanded_rows_share_memory(device):
    logits = random_logits(1, 100).to(device).expand(8, 100)
    assert logits.stride(0) == 0
    tokens, _ = ops.sample_candidates(logits, keys_for(8, device), 2)
    again, _ = ops.sample_candidates(logits.contiguous(), keys_for(8, device), 2)
    assert torch.equal(tokens, again)


def test_no_rows(device):
    tokens, log_q = ops.sample_candidates(torch.empty(0, 9, device=device), keys_for(0, device), 3)
    assert tokens.shape == log_q.shape == (0, 3)


def test_impossible_and_huge_logits(device):
    logits = torch.full((2, 600), -torch.inf)
    logits[0, 599] = 3e38
    logits[0, 5] = -3e38
    logits[1, 300], logits[1, 301] = -1e30, -1e30
    tokens, log_q = ops.sample_candidates(logits.to(device), keys_for(2, device), 64)
    assert (tokens[0] == 599).all() and (log_q[0] == 0).all()
    assert set(tokens[1].tolist()) == {300, 301}
    assert torch.allclose(log_q[1].cpu(), torch.tensor(-math.log(2)))


@pytest.mark.parametrize("temperature", [1e-30, 1e-6, 1e6, 1e30])
def test_extreme_temperatures(temperature, device):
    """Cold takes the best token; hot takes any but one of -inf or the forbidden one."""
    logits = random_logits(1, 200, device=device).expand(4096, -1).clone()
    logits[:, 100:] = -torch.inf
    options = {"forbidden_id": 5, "temperature": temperature}
    tokens, log_q = ops.sample_candidates(logits, keys_for(4096, device), 1, **options)
    allowed = [token for token in range(100) if token != 5]
    if temperature < 1:
        logits[:, 5] = -torch.inf
        assert (tokens[:, 0] == logits.argmax(dim=1)).all() and (log_q.abs() < 1e-6).all()
    else:
        assert tokens.unique().tolist() == allowed
        assert torch.allclose(log_q, torch.full_like(log_q, -math.log(99)), atol=1e-4)


@pytest.mark.parametrize("temperature", [1e-31, 1e31, math.inf, math.nan, 0.0, -1.0])
def test_temperatures_out_of_range(temperature, device):
    """Beyond 1e36 a gap of two float32 logits could overflow and yet matter."""
    logits, keys = torch.tensor([[3e38, -3e38]], device=device), keys_for(1, device)
    with pytest.raises(RuntimeError, match=r"temperature must be in \[1e-30, 1e\+30\], got "):
        ops.sample_candidates(logits, keys, 1, temperature=temperature)
    with pytest.raises(RuntimeError, match=r"temperature must be in \[1e-30, 1e\+30\], got "):
        ops.token_log_probs(logits, keys * 0, temperature=temperature)


def test_the_largest_logits_at_the_highest_temperature(device):
    logits = torch.tensor([[3e38, -3e38, 1e30]], device=device)
    tokens, log_q = ops.sample_candidates(
        logits, keys_for(1, device), 8, temperature=1e30, forbidden_id=1
    )
    assert (tokens == 0).all() and (log_q == 0).all()


def test_far_apart_chunks(device):
    """Chunks whose largest logits differ by more than fp32 exp can span, rising and falling."""
    for slope in (0.05, -0.05):
        logits = (torch.arange(6000) * slope)[None]
        tokens, _ = ops.sample_candidates(logits.to(device), keys_for(1, device), 50_000)
        assert g_test(tokens[0].cpu(), reference.log_softmax(logits)[0].exp()) > P_VALUE


def test_a_chunk_without_tokens_has_no_say(device):
    """Far below the empty first half, which must not set the scale of the row."""
    logits = torch.full((2, 6000), -torch.inf)
    logits[:, 3000:] = random_logits(2, 3000) - 1000
    tokens, log_q = ops.sample_candidates(logits.to(device), keys_for(2, device), 50)
    assert (tokens >= 3000).all()
    exact = reference.log_softmax(logits).gather(1, tokens.cpu())
    assert (log_q.cpu() - exact).abs().max() < 1e-4


def test_top_p_keeps_ties_and_the_first_token(device):
    logits = torch.tensor([[0.0, 2.0, 2.0, -1.0], [5.0, 0.0, 0.0, 0.0]]).to(device)
    tokens, log_q = ops.sample_candidates(logits, keys_for(2, device), 200, top_p=0.3)
    assert set(tokens[0].tolist()) == {1, 2}
    assert torch.allclose(log_q[0].cpu(), torch.tensor(-math.log(2)))
    assert set(tokens[1].tolist()) == {0} and (log_q[1] == 0).all()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("temperature", [1.0, 1e4, 1e20, 1e30])
@pytest.mark.parametrize("vocab", [7, 5003])
def test_a_tiny_nucleus_is_the_best_token_at_any_temperature(vocab, temperature, dtype, device):
    """Even where the weights of many logits round to one float."""
    logits, keys = random_logits(8, vocab, dtype), keys_for(8)
    logits[0] = 0.0
    logits[0, -1] = 1e-4  # nearly the whole row lies within rounding of the best
    options = {"top_p": 1e-12, "temperature": temperature}
    tokens, log_q = ops.sample_candidates(logits.to(device), keys.to(device), 3, **options)
    best = logits.max(dim=1, keepdim=True).values
    assert (logits.gather(1, tokens.cpu()) == best).all()
    ties = (logits == best).sum(1, keepdim=True)
    assert torch.allclose(log_q.cpu(), -ties.float().log(), atol=1e-6)
    want, _ = reference.sample_candidates(logits, keys, 3, **options)
    assert torch.equal(tokens.cpu(), want)


@pytest.mark.parametrize("temperature", [1e12, 1e30])
def test_a_hot_nucleus_is_cut_by_logits(temperature, device):
    """Where all weights are 1 as floats, half of the mass is the better half of the tokens."""
    logits = torch.randperm(4000, generator=torch.Generator().manual_seed(2))[None].float()
    tokens, log_q = ops.sample_candidates(
        logits.to(device), keys_for(1, device), 20_000, top_p=0.5, temperature=temperature
    )
    kept = logits[0][tokens[0].cpu().unique()]
    assert abs(kept.min() - 2000) <= 12 and abs(log_q.cpu() + math.log(2000)).max() < 1e-3


def test_top_p_matches_reference(device):
    logits, keys = random_logits(20, 5003), keys_for(20)
    options = {"top_p": 0.9, "temperature": 1.3, "forbidden_id": 5002}
    want, _ = reference.sample_candidates(logits, keys, 6, **options)
    tokens, log_q = ops.sample_candidates(logits.to(device), keys.to(device), 6, **options)
    assert (tokens.cpu() != want).sum() <= 1
    exact = reference.log_softmax(logits, 5002, 1.3, 0.9).gather(1, tokens.cpu())
    assert (log_q.cpu() - exact).abs().max() < 2e-6


@pytest.mark.parametrize(
    ("row", "found"),
    [
        ([0.0, torch.nan, 0.0, 0.0], "NaN"),
        ([0.0, torch.inf, 0.0, 0.0], "NaN or"),
        ([-torch.inf, -torch.inf, -torch.inf, -torch.inf], "-inf"),
        ([-torch.inf, torch.nan, -torch.inf, -torch.inf], "NaN"),
    ],
)
@pytest.mark.parametrize("vocab", [4, 3000])
def test_bad_rows(row, found, vocab):
    logits = torch.zeros(3, vocab)
    logits[2] = row[-1] if found == "-inf" else 0.0
    logits[2, -4:] = torch.tensor(row)
    with pytest.raises(RuntimeError, match=f"logits row 2 .*{found}"):
        ops.sample_candidates(logits, keys_for(3), 2)


def test_a_forbidden_token_may_hold_anything(device):
    logits = torch.zeros(2, 4)
    logits[0, 1], logits[1, 1] = torch.nan, torch.inf
    tokens, log_q = ops.sample_candidates(
        logits.to(device), keys_for(2, device), 500, forbidden_id=1
    )
    assert 1 not in tokens and torch.allclose(log_q.cpu(), torch.tensor(-math.log(3)))
    with pytest.raises(RuntimeError, match="row 0 allows nothing"):
        ops.sample_candidates(torch.zeros(1, 1), keys_for(1), 1, forbidden_id=0)


def test_bad_arguments():
    logits, keys = torch.zeros(7, 5), keys_for(7)
    sample = ops.sample_candidates
    with pytest.raises(RuntimeError, match=r"keys must be int64 .*\[7\], got float32 \[7\]"):
        sample(logits, keys.float(), 1)
    with pytest.raises(RuntimeError, match=r"keys must be int64 with shape \[7\], got int64 \[6\]"):
        sample(logits, keys[:6], 1)
    with pytest.raises(RuntimeError, match="bfloat16 or float16, got float64"):
        sample(logits.double(), keys, 1)
    with pytest.raises(RuntimeError, match=r"logits must have shape \[rows, vocab\]"):
        sample(logits[0], keys, 1)
    with pytest.raises(RuntimeError, match="contiguous in its last dimension, got stride 7"):
        sample(torch.zeros(5, 7).T, keys, 1)
    with pytest.raises(RuntimeError, match="num_candidates must be at least 1, got 0"):
        sample(logits, keys, 0)
    with pytest.raises(RuntimeError, match=r"forbidden_id must be -1 or in \[0, 5\), got 5"):
        sample(logits, keys, 1, forbidden_id=5)
    with pytest.raises(RuntimeError, match=r"temperature must be in \[1e-30, 1e\+30\], got 0"):
        sample(logits, keys, 1, temperature=0.0)
    with pytest.raises(RuntimeError, match=r"top_p must be in \(0, 1\], got 0"):
        sample(logits, keys, 1, top_p=0.0)


def test_no_gradient():
    logits = random_logits(3, 5).requires_grad_()
    tokens, log_q = ops.sample_candidates(logits, keys_for(3), 2)
    assert not tokens.requires_grad
    with pytest.raises(RuntimeError, match="sample_candidates has no gradient: use token_log_p"):
        log_q.sum().backward()
    with torch.no_grad():
        assert not ops.sample_candidates(logits, keys_for(3), 2)[1].requires_grad


def test_out_of_memory_names_the_op_and_the_size():
    logits, keys = torch.zeros(1, 4).expand(4_000_000, 4), torch.zeros(1, dtype=torch.int64)
    with pytest.raises(
        RuntimeError,
        match=r"sample_candidates: tokens int64 \[4000000, 1000000000\] could not be allocated: "
        "32000000000000000 bytes",
    ):
        ops.sample_candidates(logits, keys.expand(4_000_000), 10**9)


@pytest.mark.large
def test_more_than_2_to_the_32_elements():
    """Row offsets beyond 2^32 elements, over one expanded and one real matrix."""
    vocab, rows = 50258, 86_000
    assert rows * vocab > 2**32
    logits = torch.zeros(rows, vocab, dtype=torch.bfloat16)
    logits[-1, 77] = 30.0
    logits[-2, 78] = 30.0
    keys = keys_for(rows)
    tokens, _ = ops.sample_candidates(logits, keys, 1)
    assert tokens[-1].item() == 77 and tokens[-2].item() == 78
    scores = ops.token_log_probs(logits, tokens[:, 0])
    assert scores[-1] > -1e-3 and abs(scores[0].item() + math.log(vocab)) < 1e-3


def test_opcheck():
    for vocab, dtype in ((5, torch.float32), (300, torch.bfloat16)):
        logits = random_logits(4, vocab, dtype)
        torch.library.opcheck(
            torch.ops.edlm.sample_candidates.default, (logits, keys_for(4), 3, 1, 0.9, 1.0)
        )


def test_compiles_whole():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(logits, keys):
        tokens, log_q = ops.sample_candidates(logits * 2, keys, 4, forbidden_id=0)
        return tokens + 0, log_q.sum(1)

    logits, keys = random_logits(6, 50), keys_for(6)
    tokens, log_q = step(logits, keys)
    want_tokens, want_log_q = ops.sample_candidates(logits * 2, keys, 4, forbidden_id=0)
    assert torch.equal(tokens, want_tokens) and torch.allclose(log_q, want_log_q.sum(1))
