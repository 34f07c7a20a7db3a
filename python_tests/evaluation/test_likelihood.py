import math

import pytest
import torch

from edlm_engine.likelihood import log_partition_bounds


def by_definition(log_weights):
    n = log_weights.shape[-1]
    whole = torch.logsumexp(log_weights, -1) - math.log(n)
    keep = [[i for i in range(n) if i != j] for j in range(n)]
    parts = torch.stack([torch.logsumexp(log_weights[..., k], -1) for k in keep], -1)
    without_one = (parts - math.log(n - 1)).mean(-1)
    return whole, (2 * n - 1) * whole - 2 * (n - 1) * without_one


@pytest.mark.parametrize("n", [2, 3, 8])
def test_matches_the_formula(n):
    log_weights = torch.randn(4, 5, n, generator=torch.Generator().manual_seed(n)).double()
    for ours, formula in zip(
        log_partition_bounds(log_weights), by_definition(log_weights), strict=True
    ):
        assert ours.shape == (4, 5) and ours.dtype == torch.float64
        assert torch.allclose(ours, formula, rtol=0, atol=1e-12)


def test_one_dominant_weight_keeps_its_digits():
    """log(sum - w_j) would lose the small weights altogether here."""
    log_weights = torch.tensor([0.0, -800.0, -801.0])
    lower, upper = log_partition_bounds(log_weights)
    small = math.log1p(math.exp(-1)) - 800 - math.log(2)
    without_one = (small - 2 * math.log(2)) / 3
    assert abs(lower + math.log(3)) < 1e-12
    assert abs(upper - (5 * -math.log(3) - 4 * without_one)) < 1e-9


def test_shift_and_order():
    log_weights = torch.randn(6, generator=torch.Generator().manual_seed(0)).double()
    lower, upper = log_partition_bounds(log_weights)
    assert lower <= upper
    for moved in log_partition_bounds(log_weights.flip(0) - 7000):
        assert min(abs(moved + 7000 - lower), abs(moved + 7000 - upper)) < 1e-9


def test_equal_weights_are_exact():
    lower, upper = log_partition_bounds(torch.full((3, 7), -123.4, dtype=torch.float64))
    assert torch.allclose(lower, torch.full_like(lower, -123.4))
    assert torch.allclose(upper, lower) and (lower <= upper).all()


def test_bounds_bracket_log_z_on_average():
    """Theorem 1 with known Z: weights exp(x), x normal(0, 1), so log Z = 1/2."""
    samples = torch.randn(40_000, 50, generator=torch.Generator().manual_seed(1)).double()
    lower, upper = log_partition_bounds(samples)
    for bound, sign in ((lower, 1), (upper, -1)):
        gap = sign * (0.5 - bound)
        assert gap.mean() > 3 * gap.std() / len(gap) ** 0.5


def test_weights_of_zero_and_bad_rows():
    inf = math.inf
    rows = torch.tensor([[0.0, -inf, 0.0], [0.0, -inf, -inf], [-inf] * 3, [0.0, math.nan, 1.0]])
    lower, upper = log_partition_bounds(rows)
    assert abs(lower[0] - math.log(2 / 3)) < 1e-12 and math.isfinite(upper[0])
    assert abs(lower[1] + math.log(3)) < 1e-12 and upper[1] == inf
    assert lower[2:].isnan().all() and upper[2:].isnan().all()


@pytest.mark.parametrize("shape", [(), (1,), (3, 1), (2, 0)])
def test_too_few_samples(shape):
    with pytest.raises(ValueError, match="n >= 2"):
        log_partition_bounds(torch.zeros(shape))
