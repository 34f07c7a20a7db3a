"""A step as one graph: the engine's tokens, with prompts, laws and energies, and its errors."""

import pytest
import torch

import edlm_engine as edlm
from edlm_engine import ops
from edlm_engine.hosts.graph_step import GraphStep

VOCAB, LENGTH, STEPS = 9, 6, 5
MASK = VOCAB
pytestmark = pytest.mark.usefixtures("single_thread")


class Denoiser(torch.nn.Module):
    """Logits that depend on the whole canvas and on the time."""

    mask_id, vocab_size, length = MASK, VOCAB + 1, LENGTH

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.table = torch.randn(VOCAB + 1, VOCAB + 1, generator=generator)

    def logits(self, xt, sigma):
        known = self.table[xt].cumsum(dim=1) + self.table[xt].flip(1).cumsum(dim=1).flip(1)
        return known * (1 + sigma[:, None, None] / 10)


def ascending(x0, xt, log_q, t):
    return -(x0[..., 1:] > x0[..., :-1]).sum(dim=-1).float() * t[:, None]


def by_steps(step, canvas, seeds):
    log_q = torch.zeros(canvas.shape)
    for number in range(1, STEPS + 2):
        canvas, drawn = step(canvas, seeds, torch.full_like(seeds, number))
        log_q += drawn
    return canvas, log_q


@pytest.mark.parametrize("candidates", [1, 3])
@pytest.mark.parametrize("law", [{}, {"temperature": 0.7, "top_k": 4}])
def test_the_engine_s_tokens_and_log_probabilities(law, candidates):
    """64 sequences of 6, a prompt in each; with the energy, and without."""
    canvas = torch.full((64, LENGTH), MASK)
    canvas[:, 2] = torch.arange(64) % VOCAB
    energy = ascending if candidates > 1 else None
    engine = edlm.Engine(Denoiser(), energy)
    config = edlm.GenerationConfig(steps=STEPS, num_candidates=candidates, record=True, **law)
    out = engine.generate(64, config=config, canvas=canvas, seed=3)
    step = GraphStep(Denoiser(), STEPS, energy=energy, num_candidates=candidates, **law)
    tokens, log_q = by_steps(step, canvas, ops.stream_keys(3, torch.arange(64)))
    assert torch.equal(tokens, out.sequences)
    free = canvas == MASK
    torch.testing.assert_close(log_q[free], out.record.log_q[free])
    assert (log_q[~free] == 0).all()


def test_what_is_left_at_the_end_is_filled():
    """As the engine fills: a schedule that leaves half the positions to the end."""
    schedule = edlm.LogLinearSchedule(eps=0.5)
    config = edlm.GenerationConfig(steps=STEPS, num_candidates=3)
    out = edlm.Engine(Denoiser(), ascending, schedule=schedule).generate(64, config=config, seed=1)
    step = GraphStep(Denoiser(), STEPS, energy=ascending, num_candidates=3, schedule=schedule)
    canvas, seeds = torch.full((64, LENGTH), MASK), ops.stream_keys(1, torch.arange(64))
    assert (step.plan(seeds, LENGTH) == STEPS + 1).float().mean() > 0.4
    assert torch.equal(by_steps(step, canvas, seeds)[0], out.sequences)


def test_rows_may_be_at_steps_of_their_own():
    step = GraphStep(Denoiser(), STEPS)
    seeds = ops.stream_keys(torch.tensor([7, 8]))
    canvas = torch.full((2, LENGTH), MASK)
    first, _ = step(canvas, seeds, torch.tensor([1, 1]))
    both, _ = step(torch.stack([first[0], canvas[1]]), seeds, torch.tensor([2, 1]))
    second, _ = step(first, seeds, torch.tensor([2, 2]))
    assert torch.equal(both, torch.stack([second[0], first[1]]))


@pytest.mark.parametrize(
    ("given", "wanted"),
    [
        ({"steps": 0}, "steps and num_candidates must be at least 1, got 0 and 1"),
        ({"steps": 2, "num_candidates": 2}, "num_candidates=2 needs an energy"),
    ],
)
def test_what_cannot_be_is_refused(given, wanted):
    with pytest.raises(ValueError, match=wanted):
        GraphStep(Denoiser(), **given)
