"""What is served under load."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from edlm_engine import CallableDenoiser, Engine
from edlm_engine.models.dit import DiT, DiTConfig, FoldedDiT

LETTERS = "abcdefghijklmnopqrstuvwxyz "
STEP = 0.1  # seconds of a step of the simulated device


class Letters:
    """Text of 27 symbols, one a token; the mask is token 27."""

    def encode(self, text: str) -> list[int]:
        return [LETTERS.index(letter) for letter in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(LETTERS[i] if i < len(LETTERS) else "_" for i in ids)


def simulated(step: float, length: int = 64) -> Engine:
    """A device whose call takes a fixed time, whatever the number of rows, as a GPU's does while it
    is not full. It sleeps: its figures are of queueing, not of arithmetic or of this processor."""
    table = torch.randn(length, len(LETTERS) + 1, generator=torch.Generator().manual_seed(0))

    def logits(xt: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
        if step:
            time.sleep(step)
        return table.expand(len(xt), -1, -1)

    denoiser = CallableDenoiser(logits, mask_id=27, vocab_size=28, length=length)
    return Engine(denoiser, tokenizer=Letters())


def text8() -> Engine:
    """A DiT of random weights at text8's size: 28 symbols, 256 of them, 2 blocks of width 128."""
    torch.manual_seed(0)
    config = DiTConfig(vocab_size=28, length=256, hidden_dim=128, n_blocks=2, n_heads=4, mask_id=27)
    model = FoldedDiT(DiT(config).eval())
    return Engine(model, tokenizer=Letters())


MODELS: dict[str, Callable[[], Engine]] = {
    "simulated": lambda: simulated(STEP),
    "free": lambda: simulated(0.0, length=16),
    "text8": text8,
    "bundled": lambda: Engine.from_pretrained(energy=None),
    "bundled-energy": Engine.from_pretrained,
}
