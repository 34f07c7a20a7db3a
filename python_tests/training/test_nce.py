"""Training an NCE energy: what it learns, what it leaves alone, and runs of it."""

import dataclasses
import json
import signal

import numpy as np
import pytest
import torch
from enumeration import TinyDenoiser, ancestral, completions, p_value
from op_cases import g_test
from safetensors.torch import load_file
from training.test_trainer import interrupt_after

from edlm_engine import Engine, GenerationConfig, LogLinearSchedule, NCEEnergy
from edlm_engine.checkpoints.native import load_model, save_model
from edlm_engine.checkpoints.tokenizer import Tokenizer
from edlm_engine.models import DiT, DiTConfig, EnergyConfig, EnergyTransformer
from edlm_engine.training import nce
from edlm_engine.training.config import EnergyTrainConfig
from edlm_engine.training.corpus import read_text
from edlm_engine.training.kinds import KINDS
from edlm_engine.training.nce import Contrast
from edlm_engine.training.objectives import held_out_contrast, nce_energies, nce_loss
from edlm_engine.training.run_log import read_log
from edlm_engine.training.trainer import train

MASK = 1  # of the tiny models


class Table(torch.nn.Module):
    """A `TinyDenoiser` as a module with logits alone, and dropout that would spoil them."""

    def __init__(self, tiny):
        super().__init__()
        self.table, self.dropout = torch.nn.Parameter(torch.from_numpy(tiny.table)), 0.5
        self.mask_id, self.vocab_size, self.length = tiny.mask_id, tiny.vocab, tiny.length

    def logits(self, xt, sigma):
        state = torch.zeros(len(xt), dtype=torch.int64)
        for token in xt.unbind(1):
            state = state * self.vocab_size + token
        return torch.nn.functional.dropout(self.table[state], self.dropout, self.training)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def network(tiny, **sizes):
    torch.manual_seed(0)
    sizes = {"hidden_dim": 32, "n_blocks": 1, "n_heads": 2, "cond_dim": 4, **sizes}
    config = EnergyConfig(vocab_size=tiny.vocab, mask_id=tiny.mask_id, length=tiny.length, **sizes)
    return EnergyTransformer(config)


@pytest.fixture(scope="module")
def tiny():
    return TinyDenoiser(vocab=4, length=2, mask_id=MASK)


@pytest.fixture(scope="module")
def joint(tiny):
    """A law of whole sequences, dict of tuples."""
    every = completions(tiny, (MASK, MASK))
    weights = np.exp(1.5 * np.random.default_rng(5).normal(size=len(every)))
    return dict(zip(every, weights / weights.sum(), strict=True))


@pytest.fixture(scope="module")
def learned(tiny, joint, single_thread):
    """An energy trained on text of the joint law, every batch a stratified sample of it."""
    model, steps, lr = Contrast(Table(tiny), network(tiny), 3), 200, 1e-2
    text, law = torch.tensor(list(joint)), torch.tensor(list(joint.values())).cumsum(0)
    config = EnergyTrainConfig(out="", data=("",), lr=lr, weight_decay=0.0)
    optimizers = KINDS["energy"].optimizers(model, config)
    for step in range(steps):
        u = (torch.arange(128) + torch.rand(1, generator=generator(step))).double() / 128
        x0 = text[torch.searchsorted(law, u).clamp(max=len(text) - 1)]
        nce_loss(model, x0, generator(step), model.energies).backward()
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = lr * (1 - step / steps)
            optimizer.step()
            optimizer.zero_grad()
    return model.eval()


def log_ratio(tiny, joint, x0, xt):
    """log p(x0 | xt) - log p_theta(x0 | xt), both by enumeration."""
    fits = [x for x in joint if all(a in (b, MASK) for a, b in zip(xt, x, strict=True))]
    probs = tiny.probs(xt, 0.0)
    log_q = sum(np.log(probs[i, v]) for i, v in enumerate(x0) if xt[i] == MASK)
    return np.log(joint[x0] / sum(joint[x] for x in fits)) - log_q


def test_it_recovers_the_log_ratio(tiny, joint, learned):
    """At every state and completion: E = -log p/q, the sign, the scale and the offset."""
    wanted, got = [], []
    states = [(MASK, MASK), *((MASK, v) for v in tiny.tokens), *((v, MASK) for v in tiny.tokens)]
    for xt in states:
        for x0 in completions(tiny, xt):
            wanted.append(log_ratio(tiny, joint, x0, xt))
            got.append(-by_hand(learned)(x0, xt, None, 0.0))
    assert len(wanted) == 9 + 6 * 3 and np.std(wanted) > 1
    assert np.corrcoef(wanted, got)[0, 1] > 0.98
    slope, offset = np.polyfit(wanted, got, 1)
    assert abs(slope - 1) < 0.1 and abs(offset) < 0.1


def by_hand(model):
    @torch.no_grad()
    def energy(x0, xt, log_q, t):
        given = torch.tensor([[x0]]), torch.tensor([xt]), torch.zeros(1)
        return model.energies(*given).item()

    return energy


def test_few_redrawn_positions_teach_the_same_ratio(tiny, joint):
    """Conditional NCE alone, of a table of energies: the log-ratio up to constants of xt."""
    vocab, every = tiny.vocab, list(joint)
    table = torch.zeros(vocab**4, requires_grad=True)
    powers = vocab ** torch.arange(4)

    def energies(x0, xt, sigma):
        both = torch.cat((x0, xt[:, None].expand_as(x0)), dim=2)
        return table[(both * powers).sum(2)]

    model = Contrast(Table(tiny), network(tiny), 1, redraws=8)
    text, law = torch.tensor(every), torch.tensor(list(joint.values())).cumsum(0)
    optimizer = torch.optim.Adam([table])
    for step in range(120):
        u = (torch.arange(512) + torch.rand(1, generator=generator(step))).double() / 512
        x0 = text[torch.searchsorted(law, u).clamp(max=len(text) - 1)]
        found = nce_energies(model, x0, generator(step), energies, redraws=8)
        torch.nn.functional.softplus(found[:, :1] - found[:, 2:]).mean().backward()
        optimizer.param_groups[0]["lr"] = 0.2 * (1 - step / 120)
        optimizer.step()
        optimizer.zero_grad()
    for xt in [(MASK, MASK), (MASK, tiny.tokens[0]), (tiny.tokens[1], MASK)]:
        fitting = completions(tiny, xt)
        wanted = np.array([log_ratio(tiny, joint, x0, xt) for x0 in fitting])
        got = -energies(torch.tensor([fitting]), torch.tensor([xt]), None)[0].detach().numpy()
        assert np.std(wanted - got) < 0.15 * np.std(wanted) and np.std(wanted) > 0.5


def test_it_brings_whole_sequences_closer_to_the_law_of_the_text(tiny, joint, learned):
    """By exact enumeration of the sampler, at two steps: total variation from the joint law."""
    times = [1.0, 0.5]

    def distance(energy):
        law = ancestral(tiny, (MASK, MASK), times, lambda t: 0.0, energy, 4)
        return sum(abs(law.get(x, 0.0) - p) for x, p in joint.items()) / 2

    plain, corrected = distance(None), distance(by_hand(learned))
    assert plain > 0.2 and corrected < plain / 2


def test_the_trained_energy_samples_as_enumeration_says(tiny, learned):
    schedule, config = LogLinearSchedule(eps=0.2), GenerationConfig(steps=2, num_candidates=3)
    engine = Engine(learned.denoiser, NCEEnergy(learned.energy), schedule=schedule)
    drawn = engine.generate(20_000, config=config, seed=1).sequences.numpy()
    times = schedule.times(2).tolist()
    exact = ancestral(tiny, (MASK, MASK), times, lambda t: 0.0, by_hand(learned), 3)
    assert p_value(drawn, exact) > 1e-3


def test_draws_have_the_law_of_the_denoiser(tiny):
    model = Contrast(Table(tiny), network(tiny), 4)
    assert model.training and not model.denoiser.training  # or dropout would change the law
    rows = 5000
    xt = torch.tensor([[MASK, MASK], [MASK, 2]]).repeat(rows, 1)
    x0 = model.draw(xt, torch.zeros(2 * rows), torch.arange(2 * rows))
    assert x0.shape == (2 * rows, 4, 2)
    known = xt[:, None] != MASK
    assert torch.equal(x0[known.expand_as(x0)], xt[:, None].expand_as(x0)[known.expand_as(x0)])
    for row, start in enumerate(xt[:2].tolist()):
        probs = torch.from_numpy(tiny.probs(start, 0.0))
        for place in (i for i in range(2) if start[i] == MASK):
            assert g_test(x0[row::2, :, place].flatten(), probs[place]) > 1e-3
    # A draw depends on its own row and number alone.
    model.negatives = 2
    some = model.draw(xt[3:7], torch.zeros(4), torch.arange(3, 7))
    assert torch.equal(some, x0[3:7, :2])
    assert not torch.equal(x0[:, 0], x0[:, 1])


def test_a_denoiser_with_a_head_draws_the_same_as_by_its_logits():
    denoiser = small_denoiser()
    model = Contrast(denoiser.folded(), EnergyTransformer.from_denoiser(denoiser), 3)
    xt = torch.randint(10, (6, 8), generator=generator())
    xt[:, ::2] = 10
    given = xt, torch.zeros(6), torch.arange(6)
    by_head = model.draw(*given)

    class Logits(torch.nn.Module):
        mask_id, logits = 10, staticmethod(model.denoiser.logits)

    model.denoiser = Logits()
    assert (model.draw(*given) == by_head).float().mean() > 0.99 and (by_head < 10).all()


def small_denoiser(**sizes):
    torch.manual_seed(0)
    sizes = {"vocab_size": 11, "mask_id": 10, "length": 8, "cond_dim": 4, **sizes}
    denoiser = DiT(DiTConfig(hidden_dim=16, n_blocks=2, n_heads=2, **sizes)).eval()
    with torch.no_grad():
        for parameter in denoiser.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return denoiser


def test_gradient_flows_into_the_energy_alone():
    denoiser = small_denoiser()
    model = Contrast(denoiser, EnergyTransformer.from_denoiser(denoiser), 2)
    torch.nn.init.normal_(model.energy.output_layer.linear.weight)
    nce_loss(model, torch.randint(10, (6, 8)), generator(), model.energies).backward()
    assert all(parameter.grad is None for parameter in model.denoiser.parameters())
    without = {n for n, p in model.energy.named_parameters() if p.grad is None or not p.grad.any()}
    assert without == set()
    trained = {n for n, p in model.named_parameters() if p.requires_grad}
    assert trained == {f"energy.{n}" for n, _ in model.energy.named_parameters()}


def test_the_loss_is_equation_10(tiny):
    model = Contrast(Table(tiny), network(tiny), 3)
    for parameter in model.energy.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    x0 = torch.tensor(tiny.tokens)[torch.randint(3, (6, 2), generator=generator())]
    energies = nce_energies(model, x0, generator(), model.energies)
    assert energies.shape == (6, 4) and energies.std() > 0.1
    by_hand = -torch.log(torch.sigmoid(-energies[:, 0]))
    by_hand = by_hand - torch.log(torch.sigmoid(energies[:, 1:])).mean(1)
    loss = nce_loss(model, x0, generator(), model.energies)
    torch.testing.assert_close(loss, by_hand.mean())
    for parameter in model.energy.output_layer.parameters():
        torch.nn.init.zeros_(parameter)
    for parameter in model.energy.energy_head.parameters():
        torch.nn.init.zeros_(parameter)
    chance = nce_loss(model, x0, generator(), model.energies).item()
    assert chance == pytest.approx(2 * np.log(2))


def test_times_are_those_of_the_masks(tiny):
    """Seen by the energy: sigma of a time whose law is that of t given the masked number."""
    seen = []

    def energies(x0, xt, sigma):
        t = (1 - torch.exp(-sigma)) / (1 - 1e-3)
        seen.append(torch.stack(((xt == MASK).sum(1).float(), t), 1))
        return torch.zeros(x0.shape[:2])

    model = Contrast(Table(tiny), network(tiny), 1)
    for seed in range(40):
        nce_energies(model, torch.zeros(100, 2, dtype=torch.int64), generator(seed), energies)
    counts, t = torch.cat(seen).unbind(1)
    for n in (1, 2):
        times = t[counts == n].double()
        mean = (n + 1) / 4  # of Beta(n + 1, 3 - n)
        spread = (mean * (1 - mean) / 5 / len(times)) ** 0.5
        assert abs(times.mean() - mean) < 4 * spread


def test_what_is_measured_on_held_out_text(tiny, learned):
    windows = torch.tensor(completions(tiny, (MASK, MASK)))
    found = held_out_contrast(learned, windows, draws=50, batch_size=7)
    assert found == held_out_contrast(learned, windows, draws=50, batch_size=7)
    assert not learned.training and set(found) == {
        *("held_out_loss", "held_out_accuracy", "held_out_gap")
    }
    energies = torch.tensor([[-1.0, 2.0, 1.0], [0.5, -3.0, 1.0]])
    learned.energies, before = lambda *given: energies, learned.energies
    found = held_out_contrast(learned, windows[:2])
    learned.energies = before
    assert found["held_out_accuracy"] == pytest.approx((1 / 2 + 3 / 4) / 2)
    assert found["held_out_gap"] == pytest.approx(0.25 + 0.25)


# Runs


@pytest.fixture
def denoiser_folder(data, tmp_path):
    folder = tmp_path / "pair"
    tokens = Tokenizer.train([read_text(path) for path in sorted(data.glob("*"))], 270)
    tokens.save(folder / "tokenizer.json") if folder.mkdir() is None else None
    vocab = tokens.vocab_size
    save_model(small_denoiser(vocab_size=vocab + 1, mask_id=vocab), folder / "denoiser")
    return folder


@pytest.fixture
def energy_config(config, denoiser_folder):
    shared = {f.name for f in dataclasses.fields(EnergyTrainConfig)} & set(vars(config))
    fields = {name: getattr(config, name) for name in shared}
    fields |= {"hidden_dim": None, "blocks": None, "heads": None, "negatives": 2}
    return EnergyTrainConfig(**fields, denoiser=str(denoiser_folder))


def test_a_run_leaves_an_energy(energy_config, denoiser_folder, tmp_path):
    result = train("energy", energy_config)
    out = tmp_path / "run"
    assert result.finished and result.unit == "nats per window" and 0 < result.held_out_loss < 3
    recipe = json.loads((out / "recipe.json").read_text())
    assert recipe["kind"] == "energy" and recipe["config"]["denoiser"] == "pair"
    held_out = recipe["held_out"]
    assert set(held_out) == {"nats_per_window", "accuracy", "gap", "windows"}
    assert held_out["nats_per_window"] == pytest.approx(result.held_out_loss, abs=1e-4)
    logged = [entry for entry in read_log(out) if "held_out_accuracy" in entry]
    assert [entry["step"] for entry in logged] == [2, 4, 6]
    assert all("held_out_gap" in entry for entry in logged)
    energy = load_model(out)
    assert type(energy) is EnergyTransformer and energy.config.n_blocks == 2
    assert recipe["trained_parameters"] == sum(p.numel() for p in energy.parameters())
    engine = Engine.from_pretrained(denoiser_folder, energy=out)
    out = engine.generate(2, config=GenerationConfig(steps=3, num_candidates=3))
    assert out.texts is not None and (out.ess > 1).any()


def test_interrupted_and_resumed_equals_straight(energy_config, tmp_path, monkeypatch):
    config = dataclasses.replace(energy_config, checkpoint_every=100)
    straight = dataclasses.replace(config, out=str(tmp_path / "straight"))
    assert train("energy", straight).finished
    interrupt_after(monkeypatch, 2, signal.SIGTERM)
    assert train("energy", config).step == 3
    monkeypatch.undo()
    assert train("energy", dataclasses.replace(config, resume=True)).finished
    wanted, got = (load_file(f"{run.out}/model.safetensors") for run in (straight, config))
    assert wanted.keys() == got.keys()
    assert all(torch.equal(wanted[name], got[name]) for name in wanted)
    changed = dataclasses.replace(config, resume=True, negatives=3)
    with pytest.raises(ValueError, match="must keep its settings, changed: negatives 2 -> 3"):
        train("energy", changed)


def test_fresh_weights_and_fewer_blocks(energy_config):
    fresh = dataclasses.replace(energy_config, hidden_dim=8, blocks=3, heads=1)
    made = nce.build(fresh, None).energy
    assert (made.config.hidden_dim, made.config.n_blocks, made.config.n_heads) == (8, 3, 1)
    kept = nce.build(dataclasses.replace(energy_config, blocks=1, length=6), None).energy
    assert (kept.config.n_blocks, kept.length, kept.config.hidden_dim) == (1, 6, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"negatives": 0}, "negatives must be >= 1, got 0"),
        ({"blocks": 0}, "blocks must be None or >= 1, got 0"),
        ({"heads": 2}, "heads must be given with hidden_dim only, got 2"),
        ({"data": ()}, "data must be at least one file or folder"),
        ({"optimizer": "sgd"}, "optimizer must be adamw or muon, got 'sgd'"),
        ({"blocks": 3}, "blocks must be <= 2, the denoiser's, got 3"),
        ({"length": 9}, "length must be <= 8, the denoiser's, got 9"),
        ({"hidden_dim": 8, "blocks": 1}, "heads must be given with hidden_dim, got None"),
    ],
)
def test_bad_settings(energy_config, change, message):
    with pytest.raises(ValueError, match=message):
        train("energy", dataclasses.replace(energy_config, **change))


def test_denoisers_that_do_not_do(energy_config, denoiser_folder, tmp_path):
    with pytest.raises(FileNotFoundError, match="no model at"):
        train("energy", dataclasses.replace(energy_config, denoiser=str(tmp_path / "nowhere")))
    (denoiser_folder / "tokenizer.json").unlink()
    with pytest.raises(ValueError, match="denoiser must have a tokenizer beside it"):
        train("energy", dataclasses.replace(energy_config, out=str(tmp_path / "other")))
