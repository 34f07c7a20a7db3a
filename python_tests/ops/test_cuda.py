"""What only a GPU can show: streams, graphs, devices, and agreement with the CPU.

The tests of the ops themselves run on CUDA through the `device` fixture.
"""

import math

import pytest
import torch
from op_cases import DTYPES, poisoned_rows, random_logits

from edlm_engine import ops, reference

pytestmark = pytest.mark.gpu
# Without a device there is nothing here to collect.
__test__ = torch.cuda.is_available()

# Few rows are cut at their chunks, many have a block or a warp each: all three ways.
SHAPES = [(3, 28), (700, 28), (3, 4097), (3, 50258), (400, 50258), (2, 400_001)]


def keys_for(rows: int, seed: int = 5) -> torch.Tensor:
    return ops.stream_keys(seed, torch.arange(rows, device="cuda"))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "vocab"), SHAPES)
@pytest.mark.parametrize("options", [{}, {"temperature": 0.7, "forbidden_id": 5}])
def test_cpu_and_cuda_agree(rows, vocab, dtype, options):
    logits, keys = random_logits(rows, vocab, dtype), keys_for(rows)
    want, want_log_q = ops.sample_candidates(logits, keys.cpu(), 4, **options)
    tokens, log_q = ops.sample_candidates(poisoned_rows(logits.cuda()), keys, 4, **options)
    tokens, log_q = tokens.cpu(), log_q.cpu()
    same = tokens == want
    # A uniform within rounding of a boundary may take the neighbour: one draw in ten thousand.
    assert (~same).sum() <= 1 + rows * 4 // 1000
    assert (log_q - want_log_q)[same].abs().max() <= 4e-6
    scores = ops.token_log_probs(logits.cuda(), want[:, 0].cuda(), **options).cpu()
    assert (scores - want_log_q[:, 0]).abs().max() <= 4e-6


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("rows", "vocab"), SHAPES)
def test_cpu_and_cuda_redraw_alike(rows, vocab, dtype):
    p, q = random_logits(rows, vocab, dtype), random_logits(rows, vocab, dtype, seed=7)
    q[::2] = p[::2] + q[::2] / 10
    p, q, keys = p.cuda(), q.cuda(), keys_for(rows)
    draft = ops.sample_candidates(q, keys, 1)[0][:, 0]
    want = ops.residual_draw(p.cpu(), q.cpu(), draft.cpu(), keys.cpu())
    got = [x.cpu() for x in ops.residual_draw(poisoned_rows(p), q, draft, keys)]
    same = got[0] == want[0]
    assert (~same).sum() <= 1 + rows // 1000 and (got[1] != want[1]).sum() <= 1 + rows // 1000
    assert (got[2] - want[2])[same].abs().max() <= 4e-6


def test_few_rows_as_many():
    logits, keys = random_logits(400, 50258).cuda(), keys_for(400)
    many = ops.sample_candidates(logits, keys, 3)
    few = ops.sample_candidates(logits[100:107], keys[100:107], 3)
    assert torch.equal(many[0][100:107], few[0]) and torch.equal(many[1][100:107], few[1])
    scores = ops.token_log_probs(logits, many[0][:, 0])
    assert torch.equal(scores, many[1][:, 0])


@pytest.mark.parametrize("vocab", [40, 5000, 50258])
@pytest.mark.parametrize("top_p", [1.0, 0.9])
def test_bad_rows_have_a_defined_end(vocab, top_p):
    logits = torch.zeros(5, vocab)
    logits[1, -1], logits[2, 0] = torch.nan, torch.inf
    logits[3] = -torch.inf
    tokens, log_q = ops.sample_candidates(logits.cuda(), keys_for(5), 3, top_p=top_p)
    assert (tokens[1:4] == -1).all() and log_q[1:4].isnan().all()
    assert ((tokens[[0, 4]] >= 0) & (tokens[[0, 4]] < vocab)).all()
    targets = torch.tensor([0, 0, 0, 0, vocab], device="cuda")
    scores = ops.token_log_probs(logits.cuda(), targets)
    assert math.isclose(scores[0].item(), -math.log(vocab), rel_tol=1e-5)
    assert scores[1:].isnan().all()
    fine, drafts = torch.zeros(5, vocab, device="cuda"), keys_for(5) * 0
    for p, q in ((logits.cuda(), fine), (fine, logits.cuda())):
        token, accepted, log_p = ops.residual_draw(p, q, drafts, keys_for(5))
        assert (token[1:4] == -1).all() and log_p[1:4].isnan().all() and not accepted[1:4].any()
        assert (token[[0, 4]] >= 0).all() and log_p[[0, 4]].isfinite().all()
    for outside in (-1, vocab):
        token, accepted, log_p = ops.residual_draw(fine, fine, drafts + outside, keys_for(5))
        assert (token == -1).all() and not accepted.any() and log_p.isnan().all()
    weights = torch.tensor([[0.0, torch.nan], [torch.inf, 0.0], [-torch.inf, -torch.inf]])
    choice, ess, log_mean = ops.resample(weights.cuda(), keys_for(3))
    assert (choice == -1).all() and ess.isnan().all() and log_mean.isnan().all()


def test_top_p_is_the_reference_nucleus():
    for dtype in DTYPES:
        logits, keys = random_logits(20, 5003, dtype), keys_for(20)
        tokens, log_q = ops.sample_candidates(logits.cuda(), keys, 6, top_p=0.8)
        exact = reference.log_softmax(logits, top_p=0.8).gather(1, tokens.cpu())
        assert (log_q.cpu() - exact).abs().max() < 4e-6


def test_graph_replay_draws_anew_and_equals_eager():
    """Keys are read when the graph runs, so new keys give new draws and no state freezes."""
    logits = random_logits(64, 50258).cuda()
    keys = keys_for(64, seed=0).clone()

    def step():
        tokens, log_q = ops.sample_candidates(logits, keys, 4)
        choice, _, _ = ops.resample(log_q, keys)
        return tokens, log_q, ops.token_log_probs(logits, tokens[:, 0]), choice

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    seen = []
    for seed in range(3):
        keys.copy_(keys_for(64, seed=seed))
        graph.replay()
        replayed = [x.clone() for x in captured]
        eager = step()
        assert all(torch.equal(a, b) for a, b in zip(replayed, eager, strict=True))
        seen.append(replayed[0])
    assert not torch.equal(seen[0], seen[1]) and not torch.equal(seen[1], seen[2])


def test_runs_on_the_current_stream():
    """Work queued behind a long kernel on a side stream must see that kernel's result."""
    stream = torch.cuda.Stream()
    logits = torch.zeros(300, 50258, device="cuda")
    keys = keys_for(300)
    torch.cuda.synchronize()
    with torch.cuda.stream(stream):
        torch.cuda._sleep(100_000_000)
        logits[:, 7] = 100.0
        tokens, _ = ops.sample_candidates(logits, keys, 2)
    stream.synchronize()
    assert (tokens == 7).all()


def test_does_not_wait_for_the_device():
    logits, keys = random_logits(8, 5000).cuda(), keys_for(8)
    mask_probs = torch.linspace(1, 0, 9, dtype=torch.float64, device="cuda")
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        tokens, log_q = ops.sample_candidates(logits, keys, 3, top_p=0.9)
        ops.token_log_probs(logits, tokens[:, 0])
        ops.residual_draw(logits, logits, tokens[:, 0], keys)
        ops.resample(log_q, keys)
        ops.reveal_steps(keys, 16, mask_probs)
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_arguments_must_share_a_device():
    logits, keys = random_logits(4, 50), keys_for(4)
    with pytest.raises(RuntimeError, match="keys must be on the device of logits"):
        ops.sample_candidates(logits.cuda(), keys.cpu(), 1)
    with pytest.raises(RuntimeError, match="targets must be on the device of logits"):
        ops.token_log_probs(logits.cuda(), torch.zeros(4, dtype=torch.int64))


def test_every_device():
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        logits = random_logits(5, 50258).to(device)
        keys = ops.stream_keys(5, torch.arange(5, device=device))
        tokens, log_q = ops.sample_candidates(logits, keys, 3)
        want, want_log_q = ops.sample_candidates(logits.cpu(), keys.cpu(), 3)
        assert tokens.device == device and (tokens.cpu() != want).sum() <= 1
        assert torch.allclose(log_q.cpu().amin(), want_log_q.amin(), atol=1e-4)


@pytest.mark.large
def test_more_than_2_to_the_32_elements():
    vocab, rows = 50258, 86_000
    assert rows * vocab > 2**32
    logits = torch.zeros(rows, vocab, dtype=torch.bfloat16, device="cuda")
    logits[-1, 77] = 40.0
    logits[-2, 78] = 40.0
    tokens, _ = ops.sample_candidates(logits, keys_for(rows), 1)
    assert tokens[-1].item() == 77 and tokens[-2].item() == 78
    scores = ops.token_log_probs(logits, tokens[:, 0])
    assert scores[-1] > -1e-3 and abs(scores[0].item() + math.log(vocab)) < 1e-3


def test_opcheck():
    logits, keys = random_logits(4, 300, torch.bfloat16).cuda(), keys_for(4)
    check = torch.library.opcheck
    check(torch.ops.edlm.sample_candidates.default, (logits, keys, 3, 1, 0.9, 1.0))
    check(torch.ops.edlm.token_log_probs.default, (logits, keys % 300, -1, 1.0))
    check(torch.ops.edlm.residual_draw.default, (logits, logits, keys % 300, keys, 0, -1, 1.0, 0.9))
    check(torch.ops.edlm.resample.default, (logits.float(), keys))
    check(torch.ops.edlm.stream_keys.default, (keys, keys[:, None]))
