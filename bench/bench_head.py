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
@pytest.mark.parametrize("size", SIZES)
def bench_head(measure, device, product_dtype, size, case):
    rows, dim, vocab = SIZES[size]
    generator = torch.Generator(device).manual_seed(0)

    def random(*shape):
        return torch.randn(*shape, device=device, generator=generator).to(product_dtype)

    hidden, weight, bias = random(rows, dim), random(vocab, dim) / dim**0.5, random(vocab)
    keys = torch.arange(rows, device=device)
    out = torch.empty(rows, vocab, dtype=product_dtype, device=device)
    workspace = ops.head_workspace(vocab, rows, product_dtype, device)
    measure(
        lambda: CASES[case](hidden, weight, bias, keys, out, workspace),
        case,
        group=f"head, {size}: R={rows} D={dim} V={vocab} {product_dtype}",
        rounds=7,
        warmup=1,
        flops=2 * rows * dim * vocab,
        dtype=str(product_dtype),
        workspace_bytes=workspace.numel(),
    )
