"""residual_draw against one read of both rows, scores of both, and plain PyTorch."""

import pytest
import torch

from bench import baselines
from bench.bench_sample_candidates import FEW, ROWS, logits_of
from edlm_engine import ops

CASES = {
    "logits.sum() of both": lambda p, q, draft, keys: (p.sum(), q.sum()),
    "residual_draw": ops.residual_draw,
    "token_log_probs of both": lambda p, q, draft, keys: (
        ops.token_log_probs(p, draft),
        ops.token_log_probs(q, draft),
    ),
    "softmax of both + multinomial": lambda p, q, draft, keys: baselines.plain_residual(
        p, q, draft
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("logits_dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("vocab", ROWS)
def bench_residual_draw(measure, device, vocab, logits_dtype, case):
    """Drafts are drawn from q, which is near p: some one in three is refused."""
    logits = logits_of(vocab, logits_dtype, device)
    if "multinomial" in case:
        logits = logits[: max(FEW, ROWS[vocab] // 16)]
    p, noise = logits.chunk(2)
    q = p + noise / 10
    keys = torch.arange(len(p), device=device)
    draft = ops.sample_candidates(q, keys, 1)[0][:, 0]
    measure(
        lambda: CASES[case](p, q, draft, keys),
        case,
        rows=len(p),
        group=f"residual_draw V={vocab} {logits_dtype}",
        bytes=2 * p.nbytes,
    )
