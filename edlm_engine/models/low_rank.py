"""Low-rank changes of linear layers (LoRA, arXiv 2106.09685), applied beside the shared weights."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor, nn


class LowRankLinear(nn.Module):
    """x W^T + b + (x A^T) B^T: a linear layer that shares W [out, in] and b with another model.

    `down` is A [r, in] and `up` is B [out, r], any scale already multiplied into B.
    """

    def __init__(self, linear: nn.Linear, down: Tensor, up: Tensor) -> None:
        super().__init__()
        wanted = [len(down), linear.in_features], [linear.out_features, len(down)]
        if [list(down.shape), list(up.shape)] != list(wanted):
            raise ValueError(
                f"down and up must have shapes {wanted[0]} and {wanted[1]}, "
                f"got {list(down.shape)} and {list(up.shape)}"
            )
        self.weight, self.bias = linear.weight, linear.bias
        self.down, self.up = nn.Parameter(down), nn.Parameter(up)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) + F.linear(F.linear(x, self.down), self.up)


def add_low_rank(model: nn.Module, changes: dict[str, tuple[Tensor, Tensor]]) -> None:
    """Put a `LowRankLinear` in the place of each linear layer named in `changes`, in place.

    changes: layer name -> (down [r, in], up [out, r]), cast to the layer's dtype and device.
    Raises ValueError for a name that is no linear layer of the model, or for other shapes.
    """
    layers = dict(model.named_modules())
    unknown = sorted(name for name in changes if not isinstance(layers.get(name), nn.Linear))
    if unknown:
        raise ValueError(f"the model has no linear layers {unknown}")
    for name, (down, up) in changes.items():
        parent, _, leaf = name.rpartition(".")
        linear = layers[name]
        parts = (part.to(linear.weight.device, linear.weight.dtype) for part in (down, up))
        try:
            changed = LowRankLinear(linear, *parts)
        except ValueError as error:
            raise ValueError(f"{name}: {error}") from None
        setattr(layers[parent], leaf, changed)
