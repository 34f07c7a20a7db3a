"""The network of an NCE energy: EDLM's arithmetic, and what an energy may depend on."""

import pytest
import torch
from mdlm_layouts import BLOCKS, LENGTH, MASK, VOCAB, energy_shapes, restated_energy, tensors

from edlm_engine.checkpoints.dit_weights import Sizes, build
from edlm_engine.models import DiT, DiTConfig, EnergyConfig, EnergyTransformer
from edlm_engine.models.unfold import unfolded

SIZES = {"vocab_size": 11, "mask_id": 10, "length": 12, "hidden_dim": 32, "n_blocks": 2}
SIZES |= {"n_heads": 4, "cond_dim": 8}


def network(**sizes):
    weights = tensors(wanted=energy_shapes())
    sizes = Sizes(n_heads=2, length=LENGTH, **sizes)
    return weights, build(weights, "anywhere", sizes, MASK)


def candidates(rows=3, number=4, length=LENGTH, vocab=VOCAB, seed=0):
    generator = torch.Generator().manual_seed(seed)
    xt = torch.randint(vocab, (rows, length), generator=generator)
    xt[:, ::2] = vocab - 1
    drawn = torch.randint(vocab - 1, (rows, number, length), generator=generator)
    return torch.where((xt == vocab - 1)[:, None], drawn, xt[:, None]), xt


@torch.no_grad()
@pytest.mark.parametrize("time_conditioning", [False, True])
def test_the_arithmetic_is_that_of_edlm(time_conditioning):
    weights, model = network(time_conditioning=time_conditioning)
    assert type(model) is EnergyTransformer and model.config.n_blocks == BLOCKS
    x0, xt = candidates()
    sigma = torch.tensor([0.0, 0.7, 5.0])
    got = model.energies(x0, xt, sigma)
    assert got.shape == (3, 4) and got.dtype == torch.float32
    for k in range(4):
        wanted = restated_energy(weights, x0[:, k], xt, sigma if time_conditioning else None)
        torch.testing.assert_close(got[:, k], wanted.float(), rtol=0, atol=1e-4)
    assert got.std() > 0.05


def test_parameters_lie_in_the_order_of_edlm():
    _, model = network()
    assert [name for name, _ in model.named_parameters()] == list(energy_shapes())


@torch.no_grad()
def test_folded_and_unfolded_are_the_same_energy():
    _, model = network()
    x0, xt = candidates()
    sigma = torch.ones(3)
    wanted = model.energies(x0, xt, sigma)
    folded = model.folded()
    again = unfolded(folded)
    assert type(again) is EnergyTransformer and again.config == model.config
    for other in (folded, again):
        torch.testing.assert_close(other.energies(x0, xt, sigma), wanted, rtol=0, atol=1e-4)
    _, conditioned = network(time_conditioning=True)
    with pytest.raises(ValueError, match="time_conditioning must be False to fold"):
        conditioned.folded()


@torch.no_grad()
def test_blocks_in_bfloat16_keep_a_float32_head():
    _, model = network()
    x0, xt = candidates()
    wanted = model.energies(x0, xt, torch.ones(3))
    model.blocks_to(torch.bfloat16)
    got = model.energies(x0, xt, torch.ones(3))
    assert (got - wanted).abs().max() < 0.05
    assert not torch.equal(got, got.bfloat16().float())
    with torch.autocast("cpu", torch.bfloat16):
        cast = model.energies(x0, xt, torch.ones(3))
    assert not torch.equal(cast, cast.bfloat16().float())


@torch.no_grad()
def test_padding_is_left_out_of_the_mean():
    """Attention sees it as any token; with blocks that do nothing, it counts in no energy."""
    torch.manual_seed(0)
    model = EnergyTransformer(EnergyConfig(**SIZES, pad_id=7)).eval()
    for parameter in (*model.output_layer.parameters(), *model.energy_head.parameters()):
        torch.nn.init.normal_(parameter, std=0.5)  # the blocks stay gated off
    x0, xt = candidates(length=6, vocab=11)
    x0[x0 == 7] = xt[xt == 7] = 6
    pad = torch.full((3, 4, 3), 7)
    longer = torch.cat((x0, pad), 2), torch.cat((xt, pad[:, 0]), 1)
    wanted = model.energies(x0, xt, torch.zeros(3))
    torch.testing.assert_close(model.energies(*longer, torch.zeros(3)), wanted)
    assert wanted.std() > 1e-3
    counted = EnergyTransformer(EnergyConfig(**SIZES)).eval()
    counted.load_state_dict(model.state_dict())
    assert (counted.energies(*longer, torch.zeros(3)) - wanted).abs().min() > 1e-4
    assert model.energies(pad, pad[:, 0], torch.zeros(3)).isfinite().all()


@torch.no_grad()
def test_it_starts_with_the_weights_of_a_denoiser():
    torch.manual_seed(0)
    denoiser = DiT(DiTConfig(**SIZES, tie_word_embeddings=True)).eval()
    for parameter in denoiser.parameters():
        parameter.add_(0.1 * torch.randn_like(parameter))
    model = EnergyTransformer.from_denoiser(denoiser).eval()
    x0, xt = candidates(vocab=11)
    assert torch.equal(model.vocab_embed.embedding, denoiser.vocab_embed.embedding)
    assert torch.equal(model.blocks[1].mlp[2].weight, denoiser.blocks[1].mlp[2].weight)
    # A known token enters as in the denoiser: a text without masks gives the denoiser's own states.
    inputs = model._inputs(x0[:, :1], x0[:, 0])
    torch.testing.assert_close(inputs, denoiser.embed(x0[:, 0]))
    states = model._states(inputs, torch.zeros(1))
    torch.testing.assert_close(states, denoiser.hidden(x0[:, 0], torch.zeros(3)))
    # The last layer is zero, so that all energies are one number.
    assert model.energies(x0, xt, torch.zeros(3)).std() == 0
    assert EnergyTransformer.from_denoiser(denoiser, 1).config.n_blocks == 1
    for number in (0, 3):
        with pytest.raises(ValueError, match=rf"n_blocks must be in \[1, 2\], got {number}"):
            EnergyTransformer.from_denoiser(denoiser, number)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"pad_id": 11}, ValueError, r"pad_id must be -1 or in \[0, 11\), got 11"),
        ({"pad_id": 1.5}, TypeError, "pad_id must be of type int, got 1.5"),
        ({"tie_word_embeddings": True}, ValueError, "tie_word_embeddings must be False"),
    ],
)
def test_bad_sizes(change, error, message):
    with pytest.raises(error, match=message):
        EnergyConfig(**SIZES | change)


@pytest.mark.parametrize(
    ("x0", "xt"),
    [
        (torch.zeros(3, 12, dtype=torch.int64), torch.zeros(3, 12, dtype=torch.int64)),
        (torch.zeros(3, 2, 12, dtype=torch.int64), torch.zeros(2, 12, dtype=torch.int64)),
        (torch.zeros(3, 2, 13, dtype=torch.int64), torch.zeros(3, 13, dtype=torch.int64)),
        (torch.zeros(3, 2, 12), torch.zeros(3, 12)),
    ],
)
def test_bad_tokens(x0, xt):
    _, model = network()
    with pytest.raises(ValueError, match=r"x0 and xt must be integers with shapes \[b, K, L\]"):
        model.energies(x0, xt, torch.zeros(3))
