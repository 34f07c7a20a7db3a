"""A folded denoiser unfolded again: the same function, and a layout on disk."""

import pytest
import torch
from mdlm_layouts import MASK, restated, tensors

from edlm_engine.checkpoints.dit_weights import Sizes, build
from edlm_engine.models.unfold import unfolded


def folded(**options):
    sizes = Sizes(n_heads=2, length=12, **options)
    return build(tensors(), "anywhere", sizes, MASK).folded()


@torch.no_grad()
def test_it_is_the_same_function_and_folds_to_the_same_weights():
    model, xt = folded(), torch.randint(MASK + 1, (3, 12))
    again = unfolded(model)
    for sigma in (torch.zeros(3), torch.rand(3)):
        torch.testing.assert_close(
            again.logits(xt, sigma), restated(tensors(), xt).float(), rtol=0, atol=2e-4
        )
    twice = again.folded()
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(dict(twice.named_parameters())[name], parameter)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_dtypes_are_kept(dtype):
    model = folded().blocks_to(dtype)
    again = unfolded(model)
    assert again.blocks[0].adaLN_modulation.weight.dtype == dtype
    assert again.output_layer.linear.weight.dtype == torch.float32
    xt = torch.randint(MASK + 1, (2, 12))
    with torch.no_grad():
        got, wanted = again.logits(xt, torch.zeros(2)), model.logits(xt, torch.zeros(2))
    torch.testing.assert_close(got, wanted, rtol=0, atol=0.2 if dtype == torch.bfloat16 else 1e-4)
