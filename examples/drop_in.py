"""A module of the MDLM family samples by this engine: one line around its own call.

`Mdlm` below stands for the module of a training repository (MDLM, EDLM, ReMDM, DUO), with the
method and the settings that such a module has. Nothing of it changes but who samples.

    python examples/drop_in.py
"""

from types import SimpleNamespace

import torch
from torch import nn

from edlm_engine.drop_in import accelerate

VOCAB, LENGTH = 5, 8


class Mdlm(nn.Module):
    """Log-probabilities from a linear layer, log-linear noise, and a loop that samples a batch."""

    def __init__(self, steps: int, batch_size: int):
        super().__init__()
        self.mask_index, self.vocab_size, self.time_conditioning = VOCAB, VOCAB + 1, False
        self.config = SimpleNamespace(
            model=SimpleNamespace(length=LENGTH),
            sampling=SimpleNamespace(steps=steps, predictor="ddpm", noise_removal=False),
            loader=SimpleNamespace(eval_batch_size=batch_size),
        )
        self.noise = lambda t: (-torch.log1p(-(1 - 1e-3) * t), None)  # sigma(t) and its rate
        self.backbone = nn.Linear(VOCAB + 1, VOCAB + 1)
        self.calls = 0

    def forward(self, x, sigma):
        """Of a token's neighbour on the left; tokens that are known stay."""
        self.calls += 1
        left = nn.functional.one_hot(x.roll(1, dims=1), VOCAB + 1).float()
        logits = self.backbone(left).index_fill(-1, torch.tensor([VOCAB]), -1e6)
        log_p = logits.log_softmax(-1)
        known = torch.full_like(log_p, -1e6).scatter(-1, x[..., None], 0.0)
        return torch.where((x != VOCAB)[..., None], known, log_p)

    @torch.no_grad()
    def _sample(self, num_steps=None, eps=1e-5):
        steps = num_steps or self.config.sampling.steps
        x = torch.full((self.config.loader.eval_batch_size, LENGTH), VOCAB)
        for t in torch.linspace(1, eps, steps + 1)[:-1]:
            p = self(x, self.noise(t)[0].expand(len(x), 1)).exp()
            stay = 1 - (1 - eps) / steps / t  # a mask stays a mask
            p = torch.where((x == VOCAB)[..., None], p * (1 - stay), p)
            p[..., VOCAB] = torch.where(x == VOCAB, stay, 0.0)
            x = torch.multinomial(p.flatten(0, 1), 1).view_as(x)
        rest = torch.multinomial(self(x, torch.zeros(len(x), 1)).exp().flatten(0, 1), 1)
        return rest.view_as(x)


def main(steps: int = 128, batch_size: int = 4):
    torch.manual_seed(0)
    module = Mdlm(steps, batch_size)
    own, calls = module._sample(), module.calls
    with accelerate(module) as handle:  # outside a `with`, handle.restore() ends it
        module.calls = 0
        ours, fewer = module._sample(), module.calls  # its own call, the same shape and type
        evaluations = handle.generation.nfe.tolist()
    print(f"its own loop: {calls} calls of the network for {tuple(own.shape)} tokens")
    print(f"accelerated: {fewer}; the sequences themselves had {evaluations} steps that reveal")
    module.calls = 0
    assert module._sample().shape == ours.shape and module.calls == calls  # as it was
    return own, ours, calls, fewer


if __name__ == "__main__":
    main()
