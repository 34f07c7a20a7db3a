import math

import pytest
import torch
from op_cases import P_VALUE, g_test

from edlm_engine import ops, reference


def test_matches_reference(device):
    generator = torch.Generator().manual_seed(3)
    log_weights = torch.randn(500, 8, generator=generator) * 30 - 700
    log_weights[::7, 3] = -torch.inf
    keys = ops.stream_keys(9, torch.arange(500))
    want = reference.resample(log_weights, keys)
    got = [x.cpu() for x in ops.resample(log_weights.to(device), keys.to(device))]
    assert torch.equal(got[0], want[0])
    assert torch.allclose(got[1], want[1], rtol=1e-6) and torch.allclose(got[2], want[2], rtol=1e-6)


@pytest.mark.parametrize("candidates", [2, 5])
def test_frequencies_prefer_large_weight(candidates, device):
    """The sign: a larger log-weight is chosen more often."""
    log_weights = torch.arange(candidates, dtype=torch.float32) * 0.7
    batch = 100_000
    choice, ess, log_mean = ops.resample(
        log_weights.expand(batch, -1).to(device),
        ops.stream_keys(1, torch.arange(batch, device=device)),
    )
    assert g_test(choice.cpu(), torch.softmax(log_weights.double(), 0)) > P_VALUE
    weights = log_weights.double().exp()
    assert math.isclose(ess[0].item(), weights.sum() ** 2 / (weights**2).sum(), rel_tol=1e-6)
    assert math.isclose(log_mean[0].item(), weights.mean().log(), rel_tol=1e-5)


def test_ess_range(device):
    log_weights = torch.tensor([[0.0] * 6, [0.0] + [-torch.inf] * 5], device=device)
    _, ess, log_mean = ops.resample(log_weights, torch.arange(2, device=device))
    assert ess.tolist() == [6.0, 1.0]
    assert torch.allclose(log_mean.cpu(), torch.tensor([0.0, -math.log(6)]))


def test_non_contiguous_and_empty(device):
    wide = torch.randn(4, 9, 2, generator=torch.Generator().manual_seed(0)).to(device)
    keys = torch.arange(4, device=device)
    for view in (wide[:, ::3, 0], wide[:, :4, 1]):
        for a, b in zip(
            ops.resample(view, keys), ops.resample(view.contiguous(), keys), strict=True
        ):
            assert torch.equal(a, b)
    assert ops.resample(torch.empty(0, 2, device=device), keys[:0])[0].shape == (0,)


def test_bad_numbers_and_arguments():
    good, keys = torch.zeros(3, 2), torch.arange(3)
    for bad, found in ((torch.nan, "NaN"), (torch.inf, "NaN")):
        weights = good.clone()
        weights[1, 0] = bad
        with pytest.raises(RuntimeError, match=f"log_weights row 1 holds {found}"):
            ops.resample(weights, keys)
    weights = good.clone()
    weights[2] = -torch.inf
    with pytest.raises(RuntimeError, match="log_weights row 2 allows nothing"):
        ops.resample(weights, keys)
    with pytest.raises(RuntimeError, match=r"log_weights must be float32 with shape \[batch, cand"):
        ops.resample(good.double(), keys)
    with pytest.raises(RuntimeError, match=r"keys must be int64 with shape \[3\], got int64 \[2\]"):
        ops.resample(good, keys[:2])


def test_no_gradient():
    log_weights = torch.zeros(2, 3, requires_grad=True)
    _, ess, log_mean_weight = ops.resample(log_weights, torch.arange(2))
    for output in (ess, log_mean_weight):
        with pytest.raises(RuntimeError, match="resample has no gradient"):
            output.sum().backward()


def test_opcheck_and_compile():
    log_weights, keys = torch.randn(4, 3), torch.arange(4)
    torch.library.opcheck(torch.ops.edlm.resample.default, (log_weights, keys))
    compiled = torch.compile(lambda w, k: ops.resample(-w, k), fullgraph=True, backend="aot_eager")
    for a, b in zip(compiled(log_weights, keys), ops.resample(-log_weights, keys), strict=True):
        assert torch.equal(a, b)
