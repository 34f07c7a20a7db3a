"""The sizes that generations are timed at, with random weights but for the bundled pair."""

import functools
from dataclasses import dataclass

import torch

from edlm_engine import Engine
from edlm_engine.models import ARConfig, AutoregressiveTransformer, DiT, DiTConfig


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


@functools.cache
def pair(name: str, dtype: torch.dtype):
    """(denoiser, AR model) of a size in ``dtype``, in eval mode."""
    if name == "bundled":
        engine = Engine.from_pretrained(dtype=dtype)
        return engine.denoiser, engine.energy.model
    return random_pair(SIZES[name], dtype)


def random_pair(size: Size, dtype: torch.dtype):
    """A denoiser and an AR model of ``size`` with random weights."""
    torch.manual_seed(0)
    common = {"hidden_dim": size.hidden_dim, "n_blocks": size.blocks, "n_heads": size.heads}
    denoiser = DiT(
        DiTConfig(vocab_size=size.vocab, mask_id=size.vocab - 1, length=size.length, **common)
    )
    ar = AutoregressiveTransformer(
        ARConfig(
            vocab_size=size.vocab,
            length=size.length,
            bos_id=0,
            forbidden_id=size.vocab - 1,
            **common,
        )
    )
    # Fresh heads start at zero gates; any weights will do, as long as they are finite.
    for model in (denoiser, ar):
        for parameter in model.parameters():
            if parameter.abs().sum() == 0:
                torch.nn.init.normal_(parameter, std=0.02)
    return denoiser.eval().to(dtype), ar.eval().to(dtype)
