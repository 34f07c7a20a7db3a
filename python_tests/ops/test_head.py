import contextvars
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
import torch
from op_cases import random_logits

from edlm_engine import head_rows, ops, reference


def head_inputs(rows=50, dim=24, vocab=301, dtype=torch.float32):
    hidden = random_logits(rows, dim, dtype, scale=1.0)
    weight = random_logits(vocab, dim, dtype, scale=0.5)
    return hidden, weight, random_logits(1, vocab, dtype)[0]


@pytest.mark.parametrize("with_bias", [False, True])
def test_equals_the_ops_on_full_logits(with_bias, monkeypatch):
    hidden, weight, bias = head_inputs()
    bias = bias if with_bias else None
    keys, targets = torch.arange(50), torch.arange(50) * 6
    logits = torch.nn.functional.linear(hidden, weight, bias)
    want = ops.sample_candidates(logits, keys, 4, forbidden_id=7, temperature=0.8)
    scores = ops.token_log_probs(logits, targets, forbidden_id=7)
    for workspace in (1, 20 * 301 * 4, 1 << 30):  # one row, some rows, all rows at a time
        monkeypatch.setattr(head_rows, "HEAD_WORKSPACE_BYTES", workspace)
        got = ops.head_sample_candidates(
            hidden, weight, keys, 4, bias=bias, forbidden_id=7, temperature=0.8
        )
        assert torch.equal(got[0], want[0]) and torch.allclose(got[1], want[1], atol=2e-6)
        got = ops.head_token_log_probs(hidden, weight, targets, bias=bias, forbidden_id=7)
        assert torch.allclose(got, scores, atol=2e-6)


def test_matches_reference():
    hidden, weight, bias = head_inputs()
    keys, targets = torch.arange(50), torch.arange(50)
    want, _ = reference.head_sample_candidates(hidden, weight, keys, 3, bias=bias)
    got, _ = ops.head_sample_candidates(hidden, weight, keys, 3, bias=bias)
    assert (got != want).sum() <= 1
    want = reference.head_token_log_probs(hidden, weight, targets, bias=bias)
    got = ops.head_token_log_probs(hidden, weight, targets, bias=bias)
    assert torch.allclose(got, want, atol=5e-6)


def test_a_workspace_serves_again():
    hidden, weight, bias = head_inputs()
    keys = torch.arange(50)
    want = ops.head_sample_candidates(hidden, weight, keys, 2, bias=bias)
    workspace = ops.head_workspace(301, 7, torch.float32)
    assert workspace.numel() == 7 * 301 * 4
    for _ in range(2):
        got = ops.head_sample_candidates(hidden, weight, keys, 2, bias=bias, workspace=workspace)
        assert torch.equal(got[0], want[0])
    with pytest.raises(ValueError, match=r"workspace must be uint8 with at least 1204 elements"):
        ops.head_token_log_probs(hidden, weight, keys, workspace=workspace[:1203])


def test_calls_share_a_workspace_that_grows(monkeypatch):
    hidden, weight, bias = head_inputs()
    keys = torch.arange(50)
    want = ops.head_sample_candidates(hidden, weight, keys, 2, bias=bias)[0]
    sizes = []
    op = ops.head_workspace

    def recording(*given):
        sizes.append(op(*given).numel())
        return op(*given)

    monkeypatch.setattr(head_rows, "head_workspace", recording)
    monkeypatch.setattr(head_rows, "HEAD_WORKSPACE_BYTES", 7 * 100 * 4)
    with ops.one_head_workspace():
        for _ in range(2):
            ops.head_token_log_probs(hidden, weight[:100], keys)
        for _ in range(2):
            assert torch.equal(
                ops.head_sample_candidates(hidden, weight, keys, 2, bias=bias)[0], want
            )
        assert sizes == [7 * 100 * 4]
        wide = weight.repeat(3, 1)
        got = ops.head_token_log_probs(hidden, wide, keys)
        assert sizes == [7 * 100 * 4, 903 * 4]
    assert torch.equal(got, ops.head_token_log_probs(hidden, wide, keys))
    assert len(sizes) == 3


def test_workspace_is_bounded():
    assert ops.head_workspace(50258, 10**6, torch.float32).numel() <= ops.HEAD_WORKSPACE_BYTES
    assert ops.head_workspace(10**9, 5, torch.bfloat16, "meta").numel() == 2 * 10**9


def test_16_bit_operands(device):
    hidden, weight, bias = (x.to(device) for x in head_inputs(dtype=torch.bfloat16))
    keys = torch.arange(50, device=device)
    tokens, log_q = ops.head_sample_candidates(hidden, weight, keys, 3, bias=bias)
    exact = reference.log_softmax((hidden.double() @ weight.double().T + bias.double()).cpu())
    # The product is rounded to 8 bits: logits up to 16 are off by up to 1/32.
    assert (log_q.cpu() - exact.gather(1, tokens.cpu())).abs().max() < 0.1
    with pytest.raises(ValueError, match="hidden, weight and bias must share a dtype"):
        ops.head_sample_candidates(hidden.float(), weight, keys, 3)


def test_compiles_whole():
    hidden, weight, bias = head_inputs()
    compiled = torch.compile(
        lambda h, k: ops.head_sample_candidates(h * 2, weight, k, 3, bias=bias),
        fullgraph=True,
        backend="aot_eager",
    )
    keys = torch.arange(50)
    want = ops.head_sample_candidates(hidden * 2, weight, keys, 3, bias=bias)
    assert torch.equal(compiled(hidden, keys)[0], want[0])


def test_threads_that_inherit_the_context_have_a_workspace_each(monkeypatch):
    """As of `asyncio.to_thread`: with one for all they would overwrite each other's logits."""
    together = Barrier(4, timeout=60)
    addresses = []

    def meet(logits, *given, **options):
        addresses.append(logits.data_ptr())
        logits.fill_(len(addresses))
        together.wait()
        return logits[:, 0].clone()

    hidden, weight, _ = head_inputs()
    monkeypatch.setattr(ops, "token_log_probs", meet)
    call = lambda: ops.head_token_log_probs(hidden, weight, torch.arange(50))  # noqa: E731
    with ops.one_head_workspace(), ThreadPoolExecutor(4) as threads:
        for _ in range(2):
            runs = [threads.submit(contextvars.copy_context().run, call) for _ in range(4)]
            assert len({run.result()[0].item() for run in runs}) == 4
    assert len(set(addresses)) == 4


@pytest.mark.parametrize("vocab", [1, 5])
@pytest.mark.parametrize("rows", [0, 1, 3])
@pytest.mark.parametrize("dim", [0, 4])
def test_smallest_shapes(vocab, rows, dim):
    hidden, weight = torch.ones(rows, dim), torch.ones(vocab, dim)
    keys = torch.arange(rows)
    tokens, log_q = ops.head_sample_candidates(hidden, weight, keys, 3)
    want, want_log_q = ops.sample_candidates(hidden @ weight.T, keys, 3)
    assert tokens.shape == (rows, 3) and torch.equal(tokens, want)
    assert torch.equal(log_q, want_log_q) and log_q.dtype == torch.float32
    scores = ops.head_token_log_probs(hidden, weight, keys * 0)
    assert torch.equal(scores, ops.token_log_probs(hidden @ weight.T, keys * 0))


def test_no_rows_are_checked_too():
    none, weight, keys = torch.empty(0, 24), torch.ones(5, 24), torch.arange(0)
    with pytest.raises(RuntimeError, match="keys must be int64"):
        ops.head_sample_candidates(none, weight, keys.float(), 3)
    with pytest.raises(RuntimeError, match="num_candidates must be at least 1, got 0"):
        ops.head_sample_candidates(none, weight, keys, 0)
    with pytest.raises(RuntimeError, match="num_candidates must be at least 1, got -1"):
        ops.head_sample_candidates(torch.ones(2, 24), weight, torch.arange(2), -1)
    with pytest.raises(RuntimeError, match="forbidden_id must be"):
        ops.head_token_log_probs(none, weight, keys, forbidden_id=5)


def test_no_vocabulary():
    for op, more in ((ops.head_sample_candidates, (1,)), (ops.head_token_log_probs, ())):
        with pytest.raises(ValueError, match=r"with V >= 1, got \[2, 24\] and \[0, 24\]"):
            op(torch.ones(2, 24), torch.ones(0, 24), torch.arange(2), *more)


@pytest.mark.parametrize("name", ["hidden", "weight", "bias"])
def test_no_gradient(name):
    operands = dict(zip(("hidden", "weight", "bias"), head_inputs(), strict=True))
    operands[name].requires_grad_()
    keys = torch.arange(50)
    with pytest.raises(RuntimeError, match=f"have no gradient and {name} requires grad"):
        ops.head_token_log_probs(**operands, targets=keys)
    with pytest.raises(RuntimeError, match=f"have no gradient and {name} requires grad"):
        ops.head_sample_candidates(**operands, keys=keys, num_candidates=1)
    with torch.no_grad():
        assert ops.head_token_log_probs(**operands, targets=keys).isfinite().all()


def test_bad_arguments():
    hidden, weight, bias = head_inputs()
    keys = torch.arange(50)
    with pytest.raises(ValueError, match=r"must have shapes \[R, D\] and \[V, D\]"):
        ops.head_sample_candidates(hidden[:, 1:], weight, keys, 1)
    with pytest.raises(ValueError, match=r"bias must have shape \[301\], got \[300\]"):
        ops.head_sample_candidates(hidden, weight, keys, 1, bias=bias[1:])
    with pytest.raises(ValueError, match=r"targets must have shape \[50\], got \[49\]"):
        ops.head_token_log_probs(hidden, weight, keys[1:])
