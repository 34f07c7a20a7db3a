"""A folded denoiser or energy unfolded again, so that it can be written to disk."""

from __future__ import annotations

import torch
from torch import Tensor

from edlm_engine.models.dit import DiT, FoldedDiT
from edlm_engine.models.energy import EnergyTransformer, FoldedEnergy


@torch.no_grad()
def unfolded(model: FoldedDiT | FoldedEnergy) -> DiT | EnergyTransformer:
    """A network of the same function, which shares the folded one's weights.

    Its modulation is a constant: shifts are the folded norms' biases, scales 0 and gates 1. Nothing
    depends on the noise level, as in the model that was folded.
    """
    with torch.device("meta"):
        made: DiT | EnergyTransformer
        if isinstance(model, FoldedEnergy):
            made = EnergyTransformer(model.config)
        else:
            made = DiT(model.config)
    state: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        if "norm" not in name or not name.endswith(".bias"):
            state[name] = tensor
    for i, block in enumerate(model.blocks):
        one, zero = torch.ones_like(block.norm1.bias), torch.zeros_like(block.norm1.bias)
        parts = (block.norm1.bias, zero, one, block.norm2.bias, zero, one)
        state[f"blocks.{i}.adaLN_modulation.bias"] = torch.cat(parts)
    last = model.output_layer.norm_final.bias
    assert last is not None
    state["output_layer.adaLN_modulation.bias"] = torch.cat((last, torch.zeros_like(last)))
    for name, parameter in made.state_dict().items():
        if name not in state:  # what the constant does not depend on
            inside = name.startswith("blocks.")
            like = model.blocks[0].norm1.bias if inside else last
            state[name] = torch.zeros(parameter.shape, dtype=like.dtype, device=like.device)
    made.load_state_dict(state, assign=True)
    made.tie_head()
    return made.eval()
