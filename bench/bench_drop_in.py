"""A module of the MDLM family by its own sampling loop, and accelerated."""

import functools
from contextlib import nullcontext
from types import SimpleNamespace

import pytest
import torch
from mdlm_forks import Edlm, Mdlm
from torch import nn

from bench.models import Size, models
from edlm_engine.drop_in import accelerate

# Small but for the vocabulary, which is what the loops' own work goes with.
SIZE = Size(256, 2, 4, 64, 50258)
BATCH, STEPS, CANDIDATES = 2, 6, 4


class Backbone(nn.Module):
    """A denoiser of this project, with its last product as MDLM's networks have it."""

    def __init__(self, denoiser):
        super().__init__()
        self.denoiser, (weight, bias) = denoiser, denoiser.head
        self.head = nn.Linear(weight.shape[1], weight.shape[0], device="meta")
        self.head.weight, self.head.bias = nn.Parameter(weight), nn.Parameter(bias)

    def forward(self, x, sigma):
        return self.head(self.denoiser.hidden(x, sigma))


@functools.cache
def module_of(fork):
    made = models(SIZE, torch.float32, torch.device("cpu"))
    shape = SimpleNamespace(vocab=SIZE.vocab, length=SIZE.length, mask_id=SIZE.vocab - 1)
    options = {"batch_size": BATCH, "steps": STEPS}
    if fork == "MDLM":
        return Mdlm(shape, Backbone(made.denoiser), **options)
    options |= {"is_size": CANDIDATES, "is_end": 0.5}
    return Edlm(shape, made.ar, Backbone(made.denoiser), **options)


WAYS = {
    "its own loop": None,
    "accelerate, only_categorical": {"only_categorical": True},
    "accelerate, the released law": {"semantics": "released"},
    "accelerate, the paper's law": {"semantics": "paper"},
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("fork", ["MDLM", "EDLM"])
def bench_drop_in(measure, device, fork, way):
    """2 x 256, L = 64, V = 50258, 6 steps of a batch of 2; EDLM with K = 4 in the first half."""
    if device.type != "cpu":
        pytest.skip("the stand-in of those modules is on the CPU")
    module, options = module_of(fork), WAYS[way]
    with nullcontext() if options is None else accelerate(module, **options):
        measure(module._sample, way, group=f"drop_in: {fork}", rounds=3, warmup=1)
