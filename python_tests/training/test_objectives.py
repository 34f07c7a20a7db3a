"""The objectives against enumeration."""

import itertools

import pytest
import torch

from edlm_engine.models import ARConfig, AutoregressiveTransformer, DiT, DiTConfig
from edlm_engine.training.objectives import ar_loss, denoiser_loss, held_out_loss, mask_tokens

SIZES = {"length": 4, "hidden_dim": 16, "n_blocks": 1, "n_heads": 2}


def tiny_dit():
    torch.manual_seed(0)
    model = DiT(DiTConfig(vocab_size=6, mask_id=5, cond_dim=4, **SIZES)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.3 * torch.randn(parameter.shape))
    return model


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_denoiser_loss_is_the_continuous_time_bound():
    """Against (1 / t) weights integrated over t in closed form, every mask pattern enumerated."""
    model, x0 = tiny_dit(), torch.tensor([[3, 1, 4, 0]])
    length, points = 4, 20_000
    t = (torch.arange(points).double() + 0.5) / points
    wanted = 0.0
    for pattern in itertools.product([False, True], repeat=length):
        masked = torch.tensor([pattern])
        n = int(masked.sum())
        if n:
            logits = model.logits(torch.where(masked, 5, x0), torch.zeros(1)).double()
            logits[..., 5] = -torch.inf
            nll = -logits.log_softmax(-1).gather(2, x0[..., None])[..., 0][masked].sum().item()
            # Weight 1 / t of the log-linear schedule times the probability of this pattern.
            wanted += nll * (t ** (n - 1) * (1 - t) ** (length - n)).mean().item() / length
    with torch.no_grad():
        losses = [
            denoiser_loss(model, x0.expand(64, -1), generator(seed), model.hidden).item()
            for seed in range(200)
        ]
    losses = torch.tensor(losses).double()
    stderr = losses.std().item() / len(losses) ** 0.5
    assert stderr < 0.004 * wanted
    assert abs(losses.mean().item() - wanted) < 4 * stderr


def test_mask_is_left_out_of_the_loss():
    model, x0 = tiny_dit(), torch.tensor([[3, 1, 4, 0]] * 2)
    before = denoiser_loss(model, x0, generator(), model.hidden)
    with torch.no_grad():
        model.output_layer.linear.bias[5] += 20
    assert torch.equal(denoiser_loss(model, x0, generator(), model.hidden), before)


def test_times_are_stratified():
    x0 = torch.zeros(32, 16, dtype=torch.int64)
    xt, count = mask_tokens(x0, 9, generator())
    assert torch.equal((xt == 9).sum(1), count)
    # Two rows for each count, up to the common shift u of the strata.
    assert (torch.bincount(count, minlength=17)[1:] == 2).all()
    assert not torch.equal(count, count.sort().values)
    positions = torch.stack([(mask_tokens(x0, 9, generator(s))[0] == 9).sum(0) for s in range(50)])
    expected = 50 * 32 * 17 / 32
    assert (positions.sum(0) - expected).abs().max() < 5 * (50 * 32 * 0.25) ** 0.5


@pytest.mark.parametrize(("bos_id", "first"), [(0, 0), (None, 1)])
def test_ar_loss_is_the_chain_rule(bos_id, first):
    torch.manual_seed(0)
    model = AutoregressiveTransformer(ARConfig(vocab_size=5, bos_id=bos_id, **SIZES))
    x0 = torch.randint(5, (3, 4))
    log_p = model.logits(x0).log_softmax(-1).gather(2, x0[..., None])[..., 0]
    loss = ar_loss(model, x0, generator(), model.hidden)
    torch.testing.assert_close(loss, -log_p[:, first:].mean())


def test_held_out_loss_is_deterministic_and_restores_the_mode():
    model, windows = tiny_dit().train(), torch.randint(5, (7, 4))
    losses = [held_out_loss("denoiser", model, windows, draws=2, batch_size=3) for _ in range(2)]
    assert losses[0] == losses[1] and model.training
    assert held_out_loss("denoiser", model, windows, draws=2, seed=1) != losses[0]
