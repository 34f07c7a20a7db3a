"""What a step costs beside its models: a generation by models that cost nothing."""

import itertools

import pytest
import torch

from bench.baselines import ReleasedRun
from edlm_engine import CallableDenoiser, Engine, GenerationConfig

LENGTH, VOCAB, STEPS = 64, 16, 1000


@pytest.fixture
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("who", ["released algorithm", "engine"])
@pytest.mark.parametrize("candidates", [1, 8])
def bench_step(measure, device, one_thread, candidates, who):
    table = torch.randn(1, LENGTH, VOCAB, device=device)
    denoiser = CallableDenoiser(
        lambda xt, sigma: table.clone(),
        mask_id=VOCAB - 1,
        vocab_size=VOCAB,
        length=LENGTH,
        device=device,
    )
    energy = None if candidates == 1 else lambda x0, xt, log_q, t: log_q
    engine = Engine(denoiser, energy)
    config = GenerationConfig(steps=STEPS, num_candidates=candidates)
    # The released algorithm runs its models only after a step that revealed something.
    rows = int(engine.generate(config=config).nfe)

    class Ar:
        def logits(self, x0):
            return table.expand(len(x0), -1, -1)

    def released():
        xt = torch.full((1, LENGTH), VOCAB - 1, device=device)
        run = ReleasedRun(denoiser, Ar(), xt, num_candidates=candidates, window=1.0)
        for t, s in itertools.pairwise(torch.linspace(1, 1e-5, rows + 1).tolist()):
            run.cached = None
            run.step(t, s)

    measure(
        released if who == "released algorithm" else lambda: engine.generate(config=config),
        who,
        rows=rows,
        group=f"step, free models: B=1 L={LENGTH} V={VOCAB} K={candidates}",
        rounds=20,
    )
