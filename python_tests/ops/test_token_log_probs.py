import pytest
import torch
from op_cases import DTYPES, VOCABS, poisoned_rows, random_logits

from edlm_engine import op_rules, ops, reference


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("temperature", [1.0, 0.6])
def test_matches_reference(vocab, dtype, temperature, device):
    logits = random_logits(37, vocab, dtype)
    targets = torch.randint(0, vocab, (37,), generator=torch.Generator().manual_seed(0))
    exact = reference.log_softmax(logits, temperature=temperature).gather(1, targets[:, None])[:, 0]
    plain = torch.log_softmax(logits.float() / temperature, 1).gather(1, targets[:, None])[:, 0]
    got = ops.token_log_probs(
        poisoned_rows(logits.to(device)), targets.to(device), temperature=temperature
    ).cpu()
    assert (got - exact).abs().max() <= (plain - exact).abs().max() + 1e-6
    assert (got <= 0).all()


def test_forbidden_token(device):
    logits = random_logits(6, 50).to(device)
    logits[2, 9] = torch.nan
    targets = torch.tensor([0, 9, 3, 9, 49, 8], device=device)
    got = ops.token_log_probs(logits, targets, forbidden_id=9)
    want = reference.token_log_probs(logits, targets, forbidden_id=9)
    assert torch.isneginf(got[[1, 3]]).all()
    finite = torch.tensor([0, 2, 4, 5])
    assert torch.allclose(got[finite], want[finite], atol=1e-6)


def test_impossible_target_and_huge_logits(device):
    logits = torch.tensor([[-torch.inf, 0.0, 3e38], [1e5, 1e5, -1e5]], device=device)
    got = ops.token_log_probs(logits, torch.tensor([0, 1], device=device)).cpu()
    assert got[0] == -torch.inf and abs(got[1] + 0.6931472) < 1e-6


def test_agrees_with_the_draw(device):
    logits = random_logits(50, 4097, torch.bfloat16).to(device)
    tokens, log_q = ops.sample_candidates(logits, torch.arange(50, device=device), 1)
    scores = ops.token_log_probs(logits, tokens[:, 0])
    assert (scores - log_q[:, 0]).abs().max() <= 1e-6


def test_no_rows(device):
    empty = torch.empty(0, dtype=torch.int64, device=device)
    assert ops.token_log_probs(torch.empty(0, 3, device=device), empty).shape == (0,)


@pytest.mark.parametrize("bad", [-1, 5])
def test_target_outside_the_vocabulary(bad):
    targets = torch.tensor([0, bad])
    with pytest.raises(RuntimeError, match="targets row 1 is outside the vocabulary"):
        ops.token_log_probs(torch.zeros(2, 5), targets)


def test_bad_numbers_and_arguments():
    logits, targets = torch.zeros(3, 5), torch.zeros(3, dtype=torch.int64)
    bad = logits.clone()
    bad[1, 4] = torch.nan
    with pytest.raises(RuntimeError, match=r"logits row 1 holds NaN or \+inf"):
        ops.token_log_probs(bad, targets)
    bad[1] = -torch.inf
    with pytest.raises(RuntimeError, match="logits row 1 allows nothing"):
        ops.token_log_probs(bad, targets)
    with pytest.raises(RuntimeError, match=r"targets must be int64 .*\[3\], got int32 \[3\]"):
        ops.token_log_probs(logits, targets.int())
    with pytest.raises(RuntimeError, match=r"temperature must be in \[1e-30, 1e\+30\], got -1"):
        ops.token_log_probs(logits, targets, temperature=-1.0)


def test_thread_count_does_not_matter():
    logits, targets = random_logits(64, 5000), torch.arange(64)
    many = ops.token_log_probs(logits, targets)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = ops.token_log_probs(logits, targets)
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(many, one)


def test_opcheck():
    for logits in (random_logits(4, 30), random_logits(4, 30).requires_grad_()):
        torch.library.opcheck(
            torch.ops.edlm.token_log_probs.default,
            (logits, torch.tensor([1, 2, 3, 4]), 0, 1.0),
        )


def plain_log_probs(logits, targets, forbidden_id, temperature):
    scores = logits.double() / temperature
    if forbidden_id >= 0:
        scores = scores.index_fill(1, torch.tensor([forbidden_id], device=logits.device), -1e300)
    return torch.log_softmax(scores, 1).gather(1, targets[:, None])[:, 0]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("chunk", [1, 1 << 20])
@pytest.mark.parametrize(("forbidden_id", "temperature"), [(-1, 1.0), (5, 0.7)])
def test_gradient(dtype, chunk, forbidden_id, temperature, device, monkeypatch):
    monkeypatch.setattr(op_rules, "GRADIENT_CHUNK_BYTES", chunk)
    logits = random_logits(9, 129, dtype).to(device).requires_grad_()
    targets = torch.arange(9, device=device) + 7
    upstream = random_logits(1, 9, device=device)[0]
    got = ops.token_log_probs(logits, targets, forbidden_id=forbidden_id, temperature=temperature)
    (gradient,) = torch.autograd.grad(got, logits, upstream)
    exact = logits.detach().double().requires_grad_()
    want = plain_log_probs(exact, targets, forbidden_id, temperature)
    (want,) = torch.autograd.grad(want, exact, upstream.double())
    assert gradient.dtype == dtype
    tolerance = {torch.float32: 2e-6, torch.bfloat16: 2e-2, torch.float16: 2e-3}[dtype]
    assert (gradient - want).abs().max() < tolerance
    assert forbidden_id < 0 or (gradient[:, forbidden_id] == 0).all()


def test_second_gradient():
    logits, targets = random_logits(4, 6, scale=1.0).requires_grad_(), torch.arange(4)
    direction = random_logits(1, 4 * 6)[0].view(4, 6)

    def second(log_probs):
        (first,) = torch.autograd.grad(log_probs.exp().sum(), logits, create_graph=True)
        return torch.autograd.grad((first * direction).sum(), logits)[0]

    got = second(ops.token_log_probs(logits, targets, forbidden_id=5))
    assert torch.allclose(got, second(plain_log_probs(logits, targets, 5, 1.0)), atol=1e-6)


def test_gradient_of_rows_that_score_minus_infinity():
    """0, also where the incoming gradient is not finite; and a forbidden NaN does no harm."""
    logits = random_logits(3, 5)
    logits[0, 2], logits[:, 4] = -torch.inf, torch.nan
    logits.requires_grad_()
    scores = ops.token_log_probs(logits, torch.tensor([2, 4, 1]), forbidden_id=4)
    assert scores.isneginf().tolist() == [True, True, False]
    (gradient,) = torch.autograd.grad(scores.exp().sum() + scores.sum() * 0, logits)
    assert (gradient[:2] == 0).all() and gradient.isfinite().all() and gradient[2, 1] > 0
    (gradient,) = torch.autograd.grad(
        ops.token_log_probs(logits, torch.tensor([2, 4, 1]), forbidden_id=4),
        logits,
        torch.tensor([torch.nan, torch.inf, 1.0]),
    )
    assert (gradient[:2] == 0).all() and gradient[2].isfinite().all()


def test_gradient_compiles():
    logits, targets = random_logits(4, 30).requires_grad_(), torch.arange(4)
    compiled = torch.compile(
        lambda x, t: ops.token_log_probs(x * 2, t).sum(), fullgraph=True, backend="aot_eager"
    )
    (got,) = torch.autograd.grad(compiled(logits, targets), logits)
    (want,) = torch.autograd.grad(ops.token_log_probs(logits * 2, targets).sum(), logits)
    assert torch.equal(got, want)


def test_compiles_whole():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def score(logits, targets):
        return ops.token_log_probs(logits.bfloat16(), targets).sum()

    logits, targets = random_logits(4, 30), torch.arange(4)
    want = ops.token_log_probs(logits.bfloat16(), targets).sum()
    assert torch.allclose(score(logits, targets), want)
