"""`accelerate` by its laws: the paper's against enumeration, the released one against the loops."""

import numpy as np
import pytest
import torch
from enumeration import TinyDenoiser, ancestral, p_value
from mdlm_forks import Duo, Edlm, Mdlm, Remdm
from scipy import stats
from tiny_models import TableAR

from edlm_engine.drop_in import accelerate
from edlm_engine.drop_in.released import ReleasedRun

pytestmark = pytest.mark.usefixtures("single_thread")

MASK, ACCEPT = 3, 1e-3
BATCH = 3000


@pytest.fixture(scope="module")
def tiny():
    return TinyDenoiser(vocab=4, length=3, mask_id=MASK)


@pytest.fixture(scope="module")
def sharp():
    tiny = TinyDenoiser(vocab=4, length=3, mask_id=MASK)
    tiny.table *= 4
    return tiny


@pytest.fixture(scope="module")
def timed():
    return TinyDenoiser(vocab=4, length=3, mask_id=MASK, tilt=0.5)


@pytest.fixture(scope="module")
def ar():
    return TableAR(4, 3, first_position=1, forbidden_id=MASK)


def sample(module, calls, eps=1e-5) -> np.ndarray:
    torch.manual_seed(1)
    with torch.no_grad():
        drawn = [module.restore_model_and_sample(None, eps=eps) for _ in range(calls)]
    return torch.cat(drawn).numpy()


def accelerated(module, calls, semantics, eps=1e-5, **options) -> np.ndarray:
    with accelerate(module, semantics=semantics, **options):
        return sample(module, calls, eps)


def two_sample(first: np.ndarray, second: np.ndarray) -> float:
    """Chi-square test that two sets of sequences [n, L] have one law; rare ones are pooled."""
    both = np.concatenate([first, second])
    _, kind = np.unique(both, axis=0, return_inverse=True)
    kind = kind.ravel()
    counts = np.stack(
        [np.bincount(k, minlength=kind.max() + 1) for k in np.split(kind, [len(first)])]
    )
    rare = counts.sum(axis=0) < 20
    if rare.any():
        pooled = counts[:, rare].sum(axis=1, keepdims=True)
        counts = np.concatenate([counts[:, ~rare], pooled], axis=1)
    return float(stats.chi2_contingency(counts).pvalue)


def exact(tiny, module, eps=1e-5, energy=None, window=(0.0, 1.0)) -> dict:
    sampling = module.config.sampling
    times = torch.linspace(1, eps, sampling.steps + 1, dtype=torch.float64)
    noise = module.noise(times)
    sigma = noise[0] if not isinstance(module, Duo) else -torch.log(noise[1])
    sigma = sigma if module.time_conditioning else torch.zeros_like(sigma)
    of_time = dict(zip(times.tolist(), sigma.tolist(), strict=True))
    return ancestral(
        tiny,
        (MASK,) * tiny.length,
        times.tolist(),
        of_time.__getitem__,
        energy,
        getattr(sampling, "is_size", 1),
        window,
    )


@pytest.mark.parametrize("fork", [Mdlm, Remdm, Duo])
@pytest.mark.parametrize("time_conditioning", [False, True])
def test_paper_without_energy(fork, tiny, timed, time_conditioning):
    model = timed if time_conditioning else tiny
    module = fork(model, batch_size=BATCH, time_conditioning=time_conditioning)
    drawn = accelerated(module, 4, "paper")
    assert p_value(drawn, exact(model, module)) > ACCEPT
    assert p_value(sample(module, 4), exact(model, module)) > ACCEPT


def test_paper_draws_what_is_left(tiny):
    """A late end: DUO draws it, MDLM takes the most probable token."""
    duo = Duo(tiny, batch_size=BATCH)
    assert p_value(accelerated(duo, 4, "paper", eps=0.4), exact(tiny, duo, eps=0.4)) > ACCEPT
    for module in (
        Duo(tiny, batch_size=BATCH, noise_removal="greedy"),
        Mdlm(tiny, batch_size=BATCH),
    ):
        drawn = accelerated(module, 4, "paper", eps=0.4)
        assert p_value(drawn, exact(tiny, module, eps=0.4)) < 1e-6
        assert two_sample(drawn, sample(module, 4, eps=0.4)) > ACCEPT


@pytest.mark.parametrize("carry_over", [False, True])
def test_paper_with_an_ar_energy(tiny, ar, carry_over):
    module = Edlm(tiny, ar, batch_size=BATCH, ar_carry_over=carry_over)
    truth = exact(tiny, module, energy=ar.residual(MASK, carry_over))
    assert p_value(accelerated(module, 6, "paper"), truth) > ACCEPT
    # The module's own faults show.
    assert p_value(sample(module, 2), truth) < 1e-6


def test_paper_with_a_learned_energy_in_a_window(tiny):
    module = Edlm(tiny, batch_size=BATCH, is_start=0.9, is_end=0.4, is_temp=0.5)
    table = module.ebm.weight.detach().double().numpy()

    def energy(x0, xt, log_q, t):
        sigma = -np.log1p(-0.999 * t)
        return table[tiny.index(x0), tiny.index(xt)] * (1 + 0.5 * sigma) / 0.5

    truth = exact(tiny, module, energy=energy, window=(0.4, 0.9))
    assert p_value(accelerated(module, 6, "paper"), truth) > ACCEPT
    assert p_value(sample(module, 2), truth) < 1e-6


def test_paper_with_an_energy_given(tiny, ar):
    """A plain MDLM module takes any energy of the engine, and fields of its configuration."""

    def energy(x0, xt, log_q, t):
        return 2.0 * (x0[:, :, 0] == x0[:, :, 1]).float()

    module = Mdlm(tiny, batch_size=BATCH)
    drawn = accelerated(module, 6, "paper", energy=energy, config={"num_candidates": 2})
    module.config.sampling.is_size = 2
    truth = exact(tiny, module, energy=lambda x0, xt, log_q, t: 2.0 * (x0[0] == x0[1]))
    assert p_value(drawn, truth) > ACCEPT


# The fork, its options, and its eps: late ends and masks left show how many are revealed.
FORKS = {
    "MDLM": (Mdlm, {}, 0.2),
    "MDLM, no cache": (Mdlm, {"predictor": "ddpm"}, 0.2),
    "MDLM, masks left": (Mdlm, {"noise_removal": False}, 0.2),
    "ReMDM": (Remdm, {}, 0.2),
    "ReMDM, nucleus": (Remdm, {"nucleus_p": 0.7}, 0.2),
    "ReMDM, forward-backward": (Remdm, {"sampler": "forward-backward", "steps": 5}, 0.2),
    "ReMDM, to the end": (Remdm, {"sampler": "forward-backward", "noise_removal": False}, 1e-5),
    "ReMDM, remdm-cap": (Remdm, {"sampler": "remdm-cap", "eta": 0.6, "steps": 5}, 0.2),
    "ReMDM, remdm-rescale": (Remdm, {"sampler": "remdm-rescale", "steps": 5}, 0.2),
    "ReMDM, remdm-conf": (Remdm, {"sampler": "remdm-conf", "steps": 8}, 0.2),
    "ReMDM, remdm-loop": (Remdm, {"sampler": "remdm-loop", "steps": 8}, 0.2),
    "ReMDM, loop's start": (Remdm, {"sampler": "remdm-loop", "noise_removal": False}, 0.7),
    "ReMDM, remdm-cap, nucleus": (Remdm, {"sampler": "remdm-cap", "nucleus_p": 0.8}, 0.2),
    "DUO": (Duo, {}, 0.2),
    "DUO, cosine": (Duo, {"cosine": True}, 0.2),
    "DUO, greedy": (Duo, {"noise_removal": "greedy"}, 0.2),
    "DUO, masks left": (Duo, {"noise_removal": "none"}, 0.2),
    "DUO, nucleus": (Duo, {"p_nucleus": 0.6, "steps": 4}, 0.2),
    "DUO, nucleus, masks left": (Duo, {"p_nucleus": 0.4, "noise_removal": "none"}, 0.1),
}


@pytest.mark.parametrize("fork", FORKS)
def test_released_without_energy(fork, tiny, sharp):
    kind, options, eps = FORKS[fork]
    module = kind(sharp if "conf" in fork else tiny, batch_size=BATCH, **options)
    own = sample(module, 5, eps)
    assert two_sample(accelerated(module, 5, "released", eps), own) > ACCEPT


@pytest.mark.parametrize("fork", [Mdlm, Remdm, Duo])
def test_released_with_time_conditioning(fork, timed):
    module = fork(timed, batch_size=BATCH, time_conditioning=True)
    own = sample(module, 5, eps=0.2)
    assert two_sample(accelerated(module, 5, "released", eps=0.2), own) > ACCEPT


@pytest.mark.parametrize("batch", [2, 5, 700])
@pytest.mark.parametrize("options", [{}, {"ar_carry_over": False, "is_size": 3}], ids=str)
def test_released_with_an_ar_energy(tiny, ar, batch, options):
    """Rows mixed with those of other sequences, wrong sign, probabilities: all as in the loop."""
    module = Edlm(tiny, ar, batch_size=batch, **options)
    calls = {2: 200, 5: 80, 700: 8}[batch]
    own, ours = sample(module, calls), accelerated(module, calls, "released")
    assert two_sample(ours, own) > ACCEPT
    if batch == 700:
        assert two_sample(accelerated(module, calls, "paper"), own) < 1e-6


def test_released_alone_is_the_wrong_sign(tiny, ar):
    """One sequence a batch mixes with no other: the exact law, by enumeration."""
    module = Edlm(tiny, ar, batch_size=1, steps=2)

    def energy(x0, xt, log_q, t):
        masked = np.array(xt) == MASK
        scored = masked & (np.arange(3) > 0)
        return ar.log_probs(x0)[scored].sum() - np.where(masked, np.exp(log_q), 1.0).sum()

    truth = exact(tiny, module, energy=energy)
    assert p_value(accelerated(module, 500, "released"), truth) > ACCEPT


@pytest.mark.parametrize("time_as", ["one position", "with time"])
def test_released_with_a_learned_energy(time_as):
    """One position: the energy is asked at the first step, and its choice waits in the cache until
    it is revealed, be that outside the window. With time conditioning there is no cache."""
    tiny = TinyDenoiser(vocab=4, length=1, mask_id=MASK)
    conditioned = time_as == "with time"
    module = Edlm(tiny, batch_size=1, steps=4, is_end=0.8, is_size=4, time_conditioning=conditioned)
    with torch.no_grad():
        module.ebm.weight.mul_(2)
    own, ours = sample(module, 300), accelerated(module, 300, "released")
    assert two_sample(ours, own) > ACCEPT
    module.time_conditioning = not conditioned
    assert two_sample(accelerated(module, 300, "released"), own) < 1e-6


def test_the_released_energy_sees_a_sum_of_probabilities(tiny, ar):
    """Over all positions, with 1 at each known one: it counts where sequences are mixed."""
    module, seen = Edlm(tiny, ar, batch_size=5, steps=6), []
    with accelerate(module, semantics="released") as handle:
        own = handle.engine.energy.energy

        def spy(x0, xt, log_q, t, masked):
            probs = module.forward(xt, t[:, None]).exp()
            wanted = probs[:, None].expand(*x0.shape, 4).gather(-1, x0[..., None])[..., 0].sum(-1)
            seen.append(bool((xt != MASK).any()))
            assert torch.allclose(log_q, wanted.double(), atol=1e-5)
            assert np.array_equal(masked, (xt == MASK).numpy())
            return own(x0, xt, log_q, t, masked)

        handle.engine.energy.energy = spy
        sample(module, 4)
    assert any(seen) and not all(seen)


def test_confidence_is_minus_the_probability_of_what_was_drawn(tiny, monkeypatch):
    """Too small a matter for the law of three tokens, so looked at where it is kept."""
    module = Remdm(tiny, batch_size=50, sampler="remdm-conf", steps=8)
    reveal, checked = ReleasedRun._reveal, []

    def watched(self, step, reveals):
        before = self.xt.clone()
        revealed = reveal(self, step, reveals)
        p_x0 = module.forward(before, torch.zeros(50, 1)).exp()
        wanted = -p_x0.gather(-1, self.xt[..., None])[..., 0]
        assert torch.allclose(self.confidence[reveals], wanted[reveals], atol=1e-5)
        assert (self.confidence[self.masked] == -torch.inf).all()
        checked.append(int(reveals.sum()))
        return revealed

    monkeypatch.setattr(ReleasedRun, "_reveal", watched)
    accelerated(module, 1, "released")
    assert sum(checked) > 150  # more than positions: some were masked again
