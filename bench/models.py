"""The sizes that generations are timed at, with random weights but for the bundled pair."""

import functools
from dataclasses import dataclass
from typing import NamedTuple

import torch

from edlm_engine import ARResidualEnergy, Engine
from edlm_engine.models import ARConfig, AutoregressiveTransformer, DiT, DiTConfig
from edlm_engine.models.dit import FoldedDiT


@dataclass(frozen=True)
class Size:
    hidden_dim: int
    blocks: int
    heads: int
    length: int
    vocab: int  # the mask included


SIZES = {
    "text8": Size(784, 12, 14, 256, 28),
    "paper": Size(768, 12, 12, 1024, 50258),
}


class Models(NamedTuple):
    denoiser: DiT  # as released
    folded: FoldedDiT  # the same function, as `Engine.from_pretrained` makes it
    ar: AutoregressiveTransformer


@functools.cache
def models(size: Size, dtype: torch.dtype, device: torch.device) -> Models:
    """Models of ``size`` with random weights, in eval mode."""
    torch.manual_seed(0)
    common = {
        "vocab_size": size.vocab,
        "length": size.length,
        "hidden_dim": size.hidden_dim,
        "n_blocks": size.blocks,
        "n_heads": size.heads,
    }
    denoiser = DiT(DiTConfig(mask_id=size.vocab - 1, **common)).eval()
    ar = AutoregressiveTransformer(ARConfig(bos_id=0, forbidden_id=size.vocab - 1, **common)).eval()
    # Fresh heads start at zero gates; any weights will do, as long as they are finite.
    for model in (denoiser, ar):
        for parameter in model.parameters():
            if not parameter.any():
                torch.nn.init.normal_(parameter, std=0.02)
    return Models(*(model.to(device, dtype) for model in (denoiser, denoiser.folded(), ar)))


@functools.cache
def engine_of(name: str, dtype: torch.dtype, device: torch.device) -> Engine:
    """The engine on a size of ``SIZES``, or on the bundled models.

    All weights are in ``dtype``, like those of the released code; where blocks are bfloat16 the
    engine's own default would keep the heads in float32.
    """
    if name == "bundled":
        return Engine.from_pretrained(dtype=dtype, device=device)
    return engine_on(SIZES[name], dtype, device)


def engine_on(size: Size, dtype: torch.dtype, device: torch.device) -> Engine:
    made = models(size, dtype, device)
    return Engine(made.folded, ARResidualEnergy(made.ar))
