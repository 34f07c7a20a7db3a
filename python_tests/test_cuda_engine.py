"""What only a GPU can show of the engine: real graphs, real waits, streams and devices.

Its logic is tested without one in execution/test_graphs.py and sampling/test_no_wait.py.
"""

import dataclasses

import pytest
import torch
from graph_models import LENGTH, MASK, Sums, assert_same, denoiser, scorer, some

from edlm_engine import ARResidualEnergy, Engine, GenerationConfig
from edlm_engine.execution.capture import capture_on
from edlm_engine.execution.graphs import ModelGraphs
from edlm_engine.sampling.run import Run

pytestmark = pytest.mark.gpu
# Without a device there is nothing here to collect.
__test__ = torch.cuda.is_available()

CONFIG = GenerationConfig(steps=8, num_candidates=3)
PROMPT = [4] * 9


def models(carry_over=False, device="cuda"):
    energy = ARResidualEnergy(scorer().to(device), carry_over, max_tokens=12 * LENGTH)
    return denoiser(folded=True).to(device), energy


@pytest.mark.parametrize("batch_size", [3, 20])
@pytest.mark.parametrize("carry_over", [False, True])
@pytest.mark.parametrize("prompt", [None, PROMPT])
def test_graphs_draw_what_eager_calls_draw(batch_size, carry_over, prompt):
    given = models(carry_over)
    plain = Engine(*given, cuda_graphs=False)
    engine = Engine(*given)
    for seed in (3, 3, 4, 3):
        asked = {"config": CONFIG, "seed": seed, "prompt": prompt}
        assert_same(engine.generate(batch_size, **asked), plain.generate(batch_size, **asked))
    assert len(engine._graphs) > 1


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_bundled_model(device):
    """On CUDA with graphs, and against the CPU: the same text but for rounding."""
    plain = Engine.from_pretrained(device=device, dtype=torch.float32, cuda_graphs=False)
    engine = Engine.from_pretrained(device="cuda", dtype=torch.float32)
    config = dataclasses.replace(CONFIG, steps=32)
    wanted = plain.generate(4, config=config, seed=1).sequences.cpu()
    for _ in range(3):
        got = engine.generate(4, config=config, seed=1).sequences.cpu()
        # A draw within rounding of a boundary changes what follows in its sequence.
        assert (got == wanted).all(dim=1).sum() >= 3


@pytest.mark.parametrize("cuda_graphs", [True, False])
@pytest.mark.parametrize("carry_over", [False, True])
@pytest.mark.parametrize("prompt", [None, PROMPT])
def test_the_loop_does_not_wait(monkeypatch, cuda_graphs, carry_over, prompt):
    engine = Engine(*models(carry_over), cuda_graphs=cuda_graphs)
    read = Run.result

    def result(self, tokenizer):
        torch.cuda.set_sync_debug_mode("default")
        return read(self, tokenizer)

    monkeypatch.setattr(Run, "result", result)
    for mode in ("default", "default", "error"):  # a capture waits, so the graphs come first
        torch.cuda.set_sync_debug_mode(mode)
        try:
            engine.generate(3, config=CONFIG, seed=1, prompt=prompt)
        finally:
            torch.cuda.set_sync_debug_mode("default")


class Waiting(Sums):
    def hidden(self, x, y, scale):
        return super().hidden(x, y, scale) if y.max().item() < 1e9 else None


def test_a_model_that_waits_falls_back_and_harms_no_other(caplog):
    captured = ModelGraphs(torch.device("cuda"), capture_on(torch.device("cuda")))
    waiting, other = Waiting(), Sums()
    with caplog.at_level("WARNING"), torch.inference_mode():
        for seed in range(4):
            x, y = (value.cuda() for value in some(17, seed=seed))
            for model in (waiting, other):
                got, wanted = captured.call(model, "hidden", x, y, 2), model.wanted(x, y, 2)
                assert all(torch.equal(a, b) for a, b in zip(got, wanted, strict=True))
    (message,) = caplog.messages
    assert "capture failed: called a synchronizing CUDA operation" in message
    assert len(captured) == 1
    torch.cuda.empty_cache()  # raises after a capture that was left open


def test_on_another_stream():
    engine, side = Engine(*models()), torch.cuda.Stream()
    wanted = Engine(*models(), cuda_graphs=False).generate(3, config=CONFIG, seed=2)
    for stream in (torch.cuda.current_stream(), side, side, torch.cuda.current_stream()):
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            out = engine.generate(3, config=CONFIG, seed=2)
        stream.synchronize()
        assert_same(out, wanted)


def test_weights_that_move():
    denoiser, energy = models()
    engine, plain = Engine(denoiser, energy), Engine(denoiser, energy, cuda_graphs=False)
    for dtype in (torch.float32, torch.bfloat16):
        denoiser.to(dtype)
        for _ in range(3):
            out = engine.generate(3, config=CONFIG, seed=2)
        assert_same(out, plain.generate(3, config=CONFIG, seed=2))


def test_graphs_keep_the_memory_of_one():
    """Graphs share their activations and outputs: twelve take hardly more than the largest."""
    model = scorer().cuda()
    captured = ModelGraphs(torch.device("cuda"), capture_on(torch.device("cuda")))

    def reserved_after(rows):
        tokens = torch.zeros(rows, LENGTH, dtype=torch.int64, device="cuda")
        with torch.inference_mode():
            for _ in range(2):
                captured.call(model, "hidden", tokens)
        torch.cuda.empty_cache()
        return torch.cuda.memory_reserved()

    one = reserved_after(4096)
    many = [reserved_after(rows) for rows in range(1024, 4096, 256)][-1]
    assert len(captured) >= 10 and many - one <= 64 << 20


def test_compiled_backbone():
    model, _ = models()
    plain = Engine(model, cuda_graphs=False).generate(3, config=CONFIG, seed=2)
    model.hidden = torch.compile(model.hidden, dynamic=True)
    engine = Engine(model)
    for _ in range(3):
        assert_same(engine.generate(3, config=CONFIG, seed=2), plain)
    assert len(engine._graphs) > 0


def test_every_device():
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        engine = Engine(*models(device=device))
        plain = Engine(*models(device=device), cuda_graphs=False)
        canvas = torch.full((2, LENGTH), MASK)
        for _ in range(3):
            out = engine.generate(2, config=CONFIG, seed=5, canvas=canvas)
        assert out.sequences.device == device
        assert_same(out, plain.generate(2, config=CONFIG, seed=5, canvas=canvas))
