"""What the engine asks of a denoiser."""

import torch

from edlm_engine import Denoiser, Engine, GenerationConfig


def test_a_denoiser_may_inherit_from_the_protocol():
    class Uniform(Denoiser):
        def __init__(self):
            self.mask_id, self.vocab_size, self.length = 4, 5, 6

        def logits(self, xt, sigma):
            return torch.zeros(*xt.shape, self.vocab_size)

    out = Engine(Uniform()).generate(2, config=GenerationConfig(steps=3))
    assert out.sequences.shape == (2, 6) and (out.sequences != 4).all()
