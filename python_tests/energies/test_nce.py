"""The learned energy: its sign, its parts of a batch, and whole sequences against enumeration."""

import numpy as np
import pytest
import torch
from enumeration import TinyDenoiser, ancestral, p_value
from graph_emulation import EmulatedCapture
from graph_models import LENGTH, MASK, SIZES, denoiser
from tiny_models import table_denoiser

from edlm_engine import Engine, GenerationConfig, LogLinearSchedule, NCEEnergy
from edlm_engine.execution import capture
from edlm_engine.models import EnergyConfig, EnergyTransformer


def network(time_conditioning=False, **sizes):
    torch.manual_seed(2)
    sizes = {**SIZES, "mask_id": MASK, **sizes}
    model = EnergyTransformer(EnergyConfig(**sizes, time_conditioning=time_conditioning))
    for name, parameter in model.named_parameters():
        if "norm" not in name:
            torch.nn.init.normal_(parameter, std=2 * parameter.shape[-1] ** -0.5)
    torch.nn.init.normal_(model.vocab_embed.embedding)
    return model.eval()


def some(batch=5, candidates=6):
    generator = torch.Generator().manual_seed(0)
    xt = torch.randint(MASK + 1, (batch, LENGTH), generator=generator)
    drawn = torch.randint(MASK, (batch, candidates, LENGTH), generator=generator)
    x0 = torch.where((xt == MASK)[:, None], drawn, xt[:, None])
    return x0, xt, torch.randn(batch, candidates), torch.rand(batch, generator=generator)


@torch.inference_mode()
@pytest.mark.parametrize("time_conditioning", [False, True])
@pytest.mark.parametrize("max_tokens", [1, 2 * LENGTH, 7 * LENGTH, 12 * LENGTH, 10**6])
def test_parts_of_a_batch_change_nothing(max_tokens, time_conditioning):
    model, given = network(time_conditioning), some()
    shapes, energies = [], model.energies

    def recording(x0, *others):
        shapes.append(tuple(x0.shape[:2]))
        return energies(x0, *others)

    model.energies = recording
    got = NCEEnergy(model, max_tokens=max_tokens)(*given)
    x0, xt, _, t = given
    sigma = LogLinearSchedule().sigma(t)
    wanted = torch.stack(
        [energies(x0[b : b + 1], xt[b : b + 1], sigma[b : b + 1])[0] for b in range(5)]
    )
    torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-4)
    assert got.dtype == torch.float32 and wanted.std() > 0.1
    most = max(LENGTH, max_tokens)
    assert max(b * k for b, k in shapes) * LENGTH <= most
    assert sum(b * k for b, k in shapes) == 30
    assert len(shapes) == {1: 30, 2: 15, 7: 5, 12: 3}.get(max_tokens // LENGTH or 1, 1)


@torch.inference_mode()
def test_log_q_is_not_used_and_time_only_where_it_is_learned():
    x0, xt, log_q, t = some()
    plain, timed = NCEEnergy(network()), NCEEnergy(network(True))
    assert torch.equal(plain(x0, xt, log_q, t), plain(x0, xt, 2 * log_q, t / 2))
    assert not torch.equal(timed(x0, xt, log_q, t), timed(x0, xt, log_q, t / 2))


MIDDLE = 1  # the mask of the tiny models


def tiny_network(**options):
    sizes = {"vocab_size": 4, "mask_id": MIDDLE, "length": 3, "hidden_dim": 8, "n_heads": 2}
    return network(**sizes, n_blocks=1, **options)


def by_hand(model):
    """Lower is likelier: the network's own output, one candidate at a time."""

    @torch.no_grad()
    def energy(x0, xt, log_q, t):
        sigma = torch.tensor([-np.log1p(-(1 - 1e-3) * t)])
        return model.energies(torch.tensor([[x0]]), torch.tensor([xt]), sigma).item()

    return energy


@pytest.mark.usefixtures("single_thread")
@pytest.mark.parametrize("time_conditioning", [False, True])
def test_whole_sequences_are_those_of_enumeration(time_conditioning):
    tiny = TinyDenoiser(vocab=4, length=3, mask_id=MIDDLE, tilt=0.3)
    model = tiny_network(time_conditioning=time_conditioning)
    schedule = LogLinearSchedule(eps=0.2)
    config = GenerationConfig(steps=3, num_candidates=2)
    engine = Engine(table_denoiser(tiny), NCEEnergy(model, max_tokens=6000), schedule=schedule)
    drawn = torch.cat(
        [engine.generate(5000, config=config, seed=s).sequences for s in range(6)]
    ).numpy()

    def exact(energy):
        sigma = lambda t: float(schedule.sigma(torch.tensor(t, dtype=torch.float64)))  # noqa: E731
        return ancestral(tiny, (MIDDLE,) * 3, schedule.times(3).tolist(), sigma, energy, 2)

    right = by_hand(model)
    assert p_value(drawn, exact(right)) > 1e-3
    assert p_value(drawn, exact(lambda *given: -right(*given))) < 1e-6  # the sign matters
    assert p_value(drawn, exact(None)) < 1e-6


def test_graphs_give_the_same_sequences(monkeypatch):
    emulated = EmulatedCapture()
    config = GenerationConfig(steps=8, num_candidates=4, temperature=3.0)
    energy = NCEEnergy(network().folded(), max_tokens=6 * LENGTH)
    plain = Engine(denoiser(folded=True), energy).generate(3, config=config, seed=1)
    monkeypatch.setattr(capture, "capture_on", lambda device: emulated)
    engine = Engine(denoiser(folded=True), energy)
    out = engine.generate(3, config=config, seed=1)
    assert torch.equal(out.sequences, plain.sequences) and emulated.captures > 1
    torch.testing.assert_close(out.ess, plain.ess, rtol=1e-3, atol=1e-3, equal_nan=True)
    assert plain.ess[:, 0].min() < 1.5
    again = engine.generate(3, config=config, seed=1)
    assert torch.equal(again.sequences, plain.sequences)


def test_a_sequence_is_the_same_in_any_batch():
    config = GenerationConfig(steps=6, num_candidates=3, batch_invariant=True, temperature=3.0)
    engine = Engine(denoiser(folded=True), NCEEnergy(network().folded()))
    whole = engine.generate(4, config=config, seed=[3, 4, 5, 6])
    alone = engine.generate(1, config=config, seed=[5])
    assert torch.equal(whole.sequences[2], alone.sequences[0])
    steps = (~alone.ess[0].isnan()).sum()
    assert torch.equal(whole.ess[2, :steps], alone.ess[0, :steps])


def test_bad_arguments():
    for change, message in (
        ({"max_tokens": 0}, "max_tokens must be >= 1, got 0"),
        ({"sigma_eps": 0.0}, r"sigma_eps must be in \(0, 1\), got 0.0"),
    ):
        with pytest.raises(ValueError, match=message):
            NCEEnergy(network(), **change)
    with pytest.raises(TypeError, match="model must have a method energies, got DiT"):
        NCEEnergy(denoiser())
    with pytest.raises(ValueError, match=f"energy must have the denoiser's mask_id {MASK}, got 3"):
        Engine(denoiser(), NCEEnergy(network(mask_id=3)))
