import math

import pytest
import torch

from edlm_engine import ops, reference


def some(count, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return -(10 ** (torch.rand(count, generator=generator) * 14 - 12))  # 1e-12 to 100 nats


@pytest.mark.parametrize(("count", "sequences"), [(0, 0), (0, 3), (7, 7), (9000, 3), (700, 1)])
def test_equal_parts(count, sequences, device):
    values = some(count)
    sums = ops.sum_log_probs(values.to(device), sequences).cpu()
    assert sums.dtype == torch.float64 and sums.shape == (sequences,)
    if sequences:
        assert torch.equal(sums, reference.sum_log_probs(values, sequences))


@pytest.mark.parametrize("starts", [[0, 3, 3, 900], [5, 6, 6, 6, 700], [0, 0], [900, 900]])
def test_parts_of_any_size(starts, device):
    values, starts = some(900), torch.tensor(starts)
    parts = len(starts) - 1
    sums = ops.sum_log_probs(values.to(device), parts, starts.to(device)).cpu()
    assert torch.equal(sums, reference.sum_log_probs(values, parts, starts))
    for i in range(parts):
        terms = reference.on_grid(values[starts[i] : starts[i + 1]])
        assert sums[i].item() == math.fsum(terms.tolist())


def test_the_order_does_not_matter(device):
    values = some(4096)
    generator = torch.Generator().manual_seed(1)
    orders = [torch.randperm(4096, generator=generator) for _ in range(20)]
    assert len({ops.sum_log_probs(values[o].to(device), 1).item() for o in orders}) == 1


def test_what_cannot_be_stays_in_its_sequence(device):
    values = torch.tensor([-1.0, -math.inf, -2.0, -3.0, math.nan, -4.0], device=device)
    assert ops.sum_log_probs(values, 3)[0] == -math.inf
    sums = ops.sum_log_probs(values, 3).cpu()
    assert sums[1] == -5.0 and sums[2].isnan()


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (
            (torch.zeros(4).double(), 2),
            r"log_probs must be float32 with shape \[count\], got float64",
        ),
        ((torch.zeros(2, 2), 2), r"log_probs must be float32 with shape \[count\], got"),
        ((torch.zeros(4), 3), "log_probs must fall into sequences of one length, got 4 for 3"),
        ((torch.zeros(4), -1), "sequences must not be negative, got -1"),
        ((torch.zeros(4), 0), "log_probs must fall into sequences of one length, got 4 for 0"),
        ((torch.zeros(4), 2, torch.tensor([0, 4])), r"starts must be contiguous int64 with shape"),
        ((torch.zeros(4), 2, torch.tensor([0, 3, 2])), "starts must not fall and lie in .* got 2"),
        ((torch.zeros(4), 1, torch.tensor([0, 5])), r"starts must .* lie in \[0, 4\], got 5 at 1"),
        ((torch.zeros(4), 1, torch.tensor([-1, 4])), r"lie in \[0, 4\], got -1 at 0"),
    ],
)
def test_bad_arguments(given, message):
    with pytest.raises(RuntimeError, match=message):
        ops.sum_log_probs(*given)


def test_opcheck():
    for starts in (None, torch.tensor([0, 2, 6])):
        torch.library.opcheck(torch.ops.edlm.sum_log_probs.default, (some(6), 2, starts))
