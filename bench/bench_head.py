"""The head_* ops against the matrix product alone, into a buffer made beforehand."""

import pytest
import torch

from edlm_engine import ops

SIZES = {"paper": (1024, 768, 50258), "late step": (16, 768, 50258), "bundled": (1024, 256, 4097)}

CASES = {
    "product alone": lambda h, w, b, keys, out, ws: torch.addmm(b, h, w.T, out=out),
    "head_sample_candidates K=8": lambda h, w, b, keys, out, ws: ops.head_sample_candidates(
        h, w, keys, 8, bias=b, forbidden_id=len(w) - 1, workspace=ws
    ),
    "head_token_log_probs": lambda h, w, b, keys, out, ws: ops.head_token_log_probs(
        h, w, keys, bias=b, forbidden_id=len(w) - 1, workspace=ws
    ),
}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("size", SIZES)
def bench_head(measure, size, dtype, case):
    rows, dim, vocab = SIZES[size]
    torch.manual_seed(0)
    hidden, weight = torch.randn(rows, dim).to(dtype), torch.randn(vocab, dim).to(dtype) / dim**0.5
    bias, keys = torch.randn(vocab).to(dtype), torch.arange(rows)
    out = torch.empty(rows, vocab, dtype=dtype)
    workspace = ops.head_workspace(vocab, rows, dtype)
    measure(
        lambda: CASES[case](hidden, weight, bias, keys, out, workspace),
        case,
        group=f"head, {size}: R={rows} D={dim} V={vocab} {dtype}",
        rounds=7,
        workspace_bytes=workspace.numel(),
    )
