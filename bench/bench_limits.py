"""What this machine can do at most: bytes read and matrix products per second, in the same run."""

import pytest
import torch

ROWS, COLUMNS = 1024, 50258


def bench_read_bandwidth(measure):
    logits = torch.ones(ROWS, COLUMNS)
    measure(logits.sum, "read", group="limits", bytes=logits.nbytes)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def bench_matrix_rate(measure, dtype):
    a, b = torch.randn(1024, 768).to(dtype), torch.randn(768, 3072).to(dtype)
    out = torch.empty(1024, 3072, dtype=dtype)
    measure(
        lambda: torch.mm(a, b, out=out),
        f"product {dtype}",
        group="limits",
        rounds=20,
        flops=2 * 1024 * 768 * 3072,
    )
