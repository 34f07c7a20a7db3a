import pytest
import torch
from op_cases import P_VALUE, g_test

from edlm_engine import ops, reference


@pytest.mark.parametrize("steps", [1, 2, 7, 1000])
def test_matches_reference(steps, device):
    keys = ops.stream_keys(4, torch.arange(6))
    mask_probs = torch.linspace(1, 1e-3, steps + 1, dtype=torch.float64)
    want = reference.reveal_steps(keys, 130, mask_probs)
    got = ops.reveal_steps(keys.to(device), 130, mask_probs.to(device)).cpu()
    assert torch.equal(got, want)
    assert got.min() >= 1 and got.max() <= steps + 1


def test_frequencies(device):
    """P(step i) = mask_prob(t_{i-1}) - mask_prob(t_i), and mask_prob(t_N) is left at the end."""
    mask_probs = torch.tensor([1.0, 0.9, 0.5, 0.5, 0.1], dtype=torch.float64)
    keys = ops.stream_keys(8, torch.arange(200))
    steps = ops.reveal_steps(keys.to(device), 500, mask_probs.to(device)).cpu()
    probs = torch.cat([torch.zeros(1), (-mask_probs.diff()).float(), mask_probs[-1:].float()])
    assert g_test(steps, probs) > P_VALUE


def test_a_position_does_not_depend_on_the_length(device):
    keys = ops.stream_keys(8, torch.arange(3, device=device))
    mask_probs = torch.linspace(1, 0, 11, dtype=torch.float64, device=device)
    long = ops.reveal_steps(keys, 64, mask_probs)
    assert torch.equal(ops.reveal_steps(keys, 10, mask_probs), long[:, :10])
    assert torch.equal(ops.reveal_steps(keys[1:2], 64, mask_probs), long[1:2])
    assert ops.reveal_steps(keys, 0, mask_probs).shape == (3, 0)


def test_bad_arguments():
    keys = torch.arange(2)
    with pytest.raises(RuntimeError, match=r"mask_probs must not increase .* got 0.7 at 2"):
        ops.reveal_steps(keys, 3, torch.tensor([1.0, 0.5, 0.7], dtype=torch.float64))
    with pytest.raises(RuntimeError, match=r"mask_probs must not increase .* got nan at 1"):
        ops.reveal_steps(keys, 3, torch.tensor([1.0, torch.nan, 0.7], dtype=torch.float64))
    with pytest.raises(RuntimeError, match=r"mask_probs must be float64 with shape \[steps \+ 1\]"):
        ops.reveal_steps(keys, 3, torch.tensor([1.0, 0.5]))
    with pytest.raises(RuntimeError, match="length must not be negative, got -1"):
        ops.reveal_steps(keys, -1, torch.tensor([1.0, 0.5], dtype=torch.float64))
    with pytest.raises(RuntimeError, match=r"keys must be int64 with shape \[batch\], got int32"):
        ops.reveal_steps(keys.int(), 3, torch.tensor([1.0, 0.5], dtype=torch.float64))


def test_opcheck_and_compile():
    keys, mask_probs = torch.arange(3), torch.linspace(1, 0, 5, dtype=torch.float64)
    torch.library.opcheck(torch.ops.edlm.reveal_steps.default, (keys, 6, mask_probs))
    compiled = torch.compile(
        lambda k, m: ops.reveal_steps(k, 6, m) + 1, fullgraph=True, backend="aot_eager"
    )
    assert torch.equal(compiled(keys, mask_probs), ops.reveal_steps(keys, 6, mask_probs) + 1)
