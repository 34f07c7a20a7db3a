"""What this machine can do at most: bytes read and matrix products per second, in the same run."""

import pytest
import torch

ROWS, COLUMNS = 1024, 50258
# (m, k, n) of the models' own products; the report takes the fastest as the matrix rate.
PRODUCTS = [(1024, 768, 3072), (1024, 3072, 768), (2048, 768, 3072), (1024, 768, 50258)]


def bench_read_bandwidth(measure, device):
    logits = torch.ones(ROWS, COLUMNS, device=device)
    measure(logits.sum, "read", group="limits", bytes=logits.nbytes)


@pytest.mark.parametrize(("m", "k", "n"), PRODUCTS)
def bench_matrix_rate(measure, device, product_dtype, m, k, n):
    a = torch.randn(m, k, device=device).to(product_dtype)
    weight = torch.randn(n, k, device=device).to(product_dtype)
    out = torch.empty(m, n, dtype=product_dtype, device=device)
    measure(
        lambda: torch.mm(a, weight.T, out=out),
        f"product {m} x {k} x {n} {product_dtype}",
        group="limits",
        rounds=7 if n > 10_000 else 20,
        flops=2 * m * k * n,
        dtype=str(product_dtype),
    )
