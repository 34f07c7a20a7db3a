"""Small models for the tests of graphs: two that may be captured, and one that counts its calls."""

import torch

from edlm_engine.models import ARConfig, AutoregressiveTransformer, DiT, DiTConfig

VOCAB, LENGTH, MASK = 31, 16, 30
SIZES = {"vocab_size": VOCAB, "length": LENGTH, "hidden_dim": 16, "n_blocks": 1, "n_heads": 2}


def denoiser(time_conditioning=False, folded=False):
    torch.manual_seed(0)
    model = DiT(DiTConfig(**SIZES, mask_id=MASK, time_conditioning=time_conditioning))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return (model.folded() if folded else model).eval()


def scorer(bos_id=0):
    torch.manual_seed(1)
    model = AutoregressiveTransformer(ARConfig(**SIZES, bos_id=bos_id, forbidden_id=MASK))
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return model.eval()


class Sums:
    """A model of two tensors and a number with two outputs, that counts its calls."""

    capturable = True

    def __init__(self):
        self.shapes = []

    def hidden(self, x, y, scale):
        self.shapes.append(tuple(x.shape))
        return x * scale + y[:, None], (x - y[:, None]).long()

    def wanted(self, x, y, scale):
        return x * scale + y[:, None], (x - y[:, None]).long()


def some(rows, width=5, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 99 * torch.rand(rows, width, generator=generator), torch.rand(rows, generator=generator)


def assert_same(out, plain):
    assert torch.equal(out.sequences, plain.sequences) and torch.equal(out.nfe, plain.nfe)
    for name in ("ess", "log_z"):
        ours, theirs = getattr(out, name), getattr(plain, name)
        torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-3, equal_nan=True)
