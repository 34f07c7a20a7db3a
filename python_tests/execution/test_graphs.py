"""Graphs of model calls: what is captured, padded, reused and refused, with an emulated capture."""

import contextvars
import gc
import pickle
import time
from concurrent.futures import ThreadPoolExecutor
from unittest import mock

import pytest
import torch
from graph_emulation import EmulatedCapture
from graph_models import LENGTH, MASK, Sums, assert_same, denoiser, scorer, some

from edlm_engine import ARResidualEnergy, Engine, GenerationConfig
from edlm_engine.execution import capture as capture_module
from edlm_engine.execution import graphs
from edlm_engine.execution.graphs import ModelGraphs, call_model, padded_rows, using

pytestmark = pytest.mark.usefixtures("single_thread")


@pytest.fixture
def capture(monkeypatch):
    """The emulated capture, which engines then use on the CPU."""
    capture = EmulatedCapture()
    monkeypatch.setattr(capture_module, "capture_on", lambda device: capture)
    return capture


@pytest.fixture
def on_cpu():
    return ModelGraphs(torch.device("cpu"), EmulatedCapture())


def same(ours, theirs):
    return all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


# Calls


def test_every_argument_reaches_the_graph(on_cpu):
    model = Sums()
    for seed in range(6):
        x, y = some(4, seed=seed)
        for given in ((x, some(4, seed=9)[1]), (some(4, seed=9)[0], y), (x, y)):
            assert same(on_cpu.call(model, "hidden", *given, 2), model.wanted(*given, 2))
    # Once eagerly, twice to warm up and capture; all else is replayed.
    assert len(model.shapes) == 3 and on_cpu._capture.replays == 17 and len(on_cpu) == 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_numbers_shapes_and_dtypes_have_their_own_graphs(on_cpu, dtype):
    model = Sums()
    for _ in range(3):
        for scale in (2, 3):
            for width in (5, 6):
                x, y = some(4, width)
                x = x.to(dtype)
                assert same(on_cpu.call(model, "hidden", x, y, scale), model.wanted(x, y, scale))
    assert len(on_cpu) == 4
    x, y = some(4)
    on_cpu.call(model, "hidden", x.double(), y, 2)
    assert len(model.shapes) == 4 * 3 + 1


def test_rows_are_padded_and_cut(on_cpu):
    model = Sums()
    for round_ in range(3):
        for rows in (17, 18, 3):
            x, y = some(rows, seed=round_)
            got = on_cpu.call(model, "hidden", x, y, 2)
            assert same(got, model.wanted(x, y, 2)) and len(got[0]) == rows
    assert {shape[0] for shape in model.shapes} == {18, 3} and len(on_cpu) == 2


def test_padded_rows():
    padded = [padded_rows(rows) for rows in range(1, 5000)]
    assert padded[:16] == list(range(1, 17)) and padded[16:20] == [18, 18, 20, 20]
    assert padded == sorted(padded)
    for rows, size in enumerate(padded, 1):
        assert rows <= size == padded_rows(size) and (size - rows) * 8 < size
    assert len(set(padded)) == 16 + 8 * 8 + 2  # up to 16, to 4096, to 5120


def test_a_result_lasts_until_the_next_call(on_cpu):
    """Nothing of it lies in the pool, and results of one call do not overlap."""
    model, other = Sums(), Sums()
    for seed in range(4):
        for rows, width in ((2, 5), (9, 33), (1, 3), (2, 5)):
            given = some(rows, width, seed)
            got = on_cpu.call(model, "hidden", *given, 2)
            assert same(got, model.wanted(*given, 2))
            again = on_cpu.call(other, "hidden", *given, 7)
            assert same(again, model.wanted(*given, 7))
    assert len(on_cpu) == 6
    sizes = 9 * 33 * 4, 9 * 33 * 8
    assert len(on_cpu._buffer) <= sum(sizes) + 2 * 255  # one buffer of the largest


def test_the_number_of_graphs_is_bounded(on_cpu, monkeypatch, caplog):
    monkeypatch.setattr(graphs, "MAX_GRAPHS", 2)
    model = Sums()
    with caplog.at_level("INFO"):
        for seed in range(4):
            for rows in (1, 2, 3, 17):
                given = some(rows, seed=seed)
                assert same(on_cpu.call(model, "hidden", *given, 2), model.wanted(*given, 2))
    assert len(on_cpu) == 2
    assert caplog.messages == ["further shapes run eagerly: there are 2 graphs"]
    assert {shape[0] for shape in model.shapes[-2:]} == {3, 18}


# Models that are not captured


def test_a_model_must_say_that_it_may_be_captured(on_cpu, caplog):
    model = Sums()
    model.capturable = False
    silent = mock.Mock(spec=["hidden"], hidden=lambda x: x)
    with caplog.at_level("INFO"):
        for seed in range(4):
            given = some(17, seed=seed)
            assert same(on_cpu.call(model, "hidden", *given, 2), model.wanted(*given, 2))
            on_cpu.call(silent, "hidden", given[0])
    assert len(on_cpu) == 0 and model.shapes == [(17, 5)] * 4
    assert caplog.messages == [
        f"{name}.hidden runs eagerly: its attribute `capturable` is not True"
        for name in ("Sums", "Mock")
    ]


def test_models_in_training_mode_and_under_autocast_run_eagerly(on_cpu, caplog):
    model = scorer()
    tokens = torch.arange(3)[:, None].expand(3, LENGTH)
    assert model.capturable and denoiser(folded=True).capturable
    with caplog.at_level("INFO"), torch.inference_mode():
        with torch.autocast("cpu", torch.bfloat16):
            for _ in range(3):
                on_cpu.call(model, "hidden", tokens)
        model.train()
        for _ in range(3):
            on_cpu.call(model, "hidden", tokens)
        assert len(on_cpu) == 0 and len(caplog.messages) == 2
        assert "autocast is on" in caplog.text
        model.eval()
        for _ in range(3):
            on_cpu.call(model, "hidden", tokens)
        assert len(on_cpu) == 1


class Waiting(Sums):
    """Claims more than it holds."""

    def hidden(self, x, y, scale):
        self.shapes.append(tuple(x.shape))
        return super().wanted(x, y, scale) if y.max() < 1e9 else None


def test_a_capture_that_fails_falls_back(on_cpu, caplog):
    model, other = Waiting(), Sums()
    with caplog.at_level("WARNING"):
        for seed in range(4):
            given = some(17, seed=seed)
            assert same(on_cpu.call(model, "hidden", *given, 2), model.wanted(*given, 2))
            assert same(on_cpu.call(other, "hidden", *given, 2), model.wanted(*given, 2))
    (message,) = caplog.messages
    assert "Waiting.hidden runs eagerly: its capture failed: operation not permitted" in message
    assert len(on_cpu) == 1 and model.shapes[-2:] == [(17, 5)] * 2


# Models that change


def test_weights_changed_in_place_and_weights_that_moved(on_cpu):
    model = denoiser()
    xt, sigma = torch.full((3, LENGTH), MASK), torch.rand(3)

    def check():
        with torch.inference_mode(), using(on_cpu):
            for _ in range(3):
                got = call_model(model, "hidden", xt, sigma)
                assert torch.equal(got, model.hidden(xt, sigma))

    check()
    with torch.no_grad():
        model.vocab_embed.embedding.mul_(2)
    captures = on_cpu._capture.captures
    check()
    assert on_cpu._capture.captures == captures == len(on_cpu) == 1
    model.to(torch.bfloat16)
    check()
    assert on_cpu._capture.captures == 2 and len(on_cpu) == 1


@pytest.mark.parametrize(
    "change",
    [
        lambda weight: weight[:, :3],
        lambda weight: weight.view(torch.int32),
        lambda weight: weight.T,
    ],
)
def test_weights_at_the_same_address_that_are_read_otherwise(on_cpu, change):
    class Total(torch.nn.Module):
        capturable = True

        def __init__(self):
            super().__init__()
            self.register_buffer("weight", torch.arange(16.0).view(4, 4))

        def hidden(self, x):
            return x + self.weight[0].sum()

    model, x = Total(), torch.ones(2)
    for _ in range(2):
        for _ in range(3):
            with using(on_cpu):
                assert torch.equal(call_model(model, "hidden", x), model.hidden(x))
        model.weight = change(model.weight)


def test_graphs_go_with_their_model(on_cpu):
    model, other = Sums(), Sums()
    for _ in range(3):
        on_cpu.call(model, "hidden", *some(2), 1)
        on_cpu.call(other, "hidden", *some(2), 1)
    assert len(on_cpu) == 2
    del model
    gc.collect()
    assert len(on_cpu) == 1


def test_a_replaced_method_is_not_served_by_the_old_graph(on_cpu):
    model, given = Sums(), (*some(2), 1)
    for _ in range(3):
        on_cpu.call(model, "hidden", *given)
    with mock.patch.object(model, "hidden", lambda x, y, scale: (x, y)):
        for _ in range(3):
            assert same(on_cpu.call(model, "hidden", *given), given[:2])
    assert same(on_cpu.call(model, "hidden", *given), model.wanted(*given))


# The engine


def both(config, energy=None, model=None, **given):
    """A generation with graphs, its engine, and one without."""
    model = model or denoiser(folded=True)
    engine = Engine(model, energy)
    plain = Engine(model, energy, cuda_graphs=False).generate(config=config, seed=3, **given)
    return engine.generate(config=config, seed=3, **given), engine, plain


@pytest.mark.parametrize("batch_size", [1, 3, 20])
@pytest.mark.parametrize("carry_over", [False, True])
@pytest.mark.parametrize(
    ("options", "prompt"),
    [
        ({}, None),
        ({"num_candidates": 5, "window": 0.5}, None),
        ({"window": (0.2, 0.7), "final": "argmax"}, [4] * 9),
        ({"steps": None, "num_candidates": 2}, [4] * 7),
        ({"batch_invariant": True}, [4] * 5),
    ],
)
def test_tokens_are_those_without_graphs(capture, batch_size, carry_over, options, prompt):
    config = GenerationConfig(**{"steps": 8, "num_candidates": 3, **options})
    energy = ARResidualEnergy(scorer(), carry_over, max_tokens=12 * LENGTH)
    out, engine, plain = both(config, energy, batch_size=batch_size, prompt=prompt)
    assert_same(out, plain)
    for _ in range(2):
        assert_same(engine.generate(batch_size, config=config, seed=3, prompt=prompt), plain)
    assert capture.replays >= 2 * int(plain.nfe.max()) and len(engine._graphs) > 1


@pytest.mark.parametrize("bos_id", [0, None])
@pytest.mark.parametrize("time_conditioning", [False, True])
def test_tokens_of_other_models(capture, bos_id, time_conditioning):
    energy, model = ARResidualEnergy(scorer(bos_id)), denoiser(time_conditioning)
    config = GenerationConfig(steps=8, num_candidates=3)
    out, engine, plain = both(config, energy, model, batch_size=5, prompt=[4] * 9)
    assert_same(out, plain)
    assert {key[0][0] for key in engine._graphs._models[energy.model].calls} == {
        "hidden_after_prefix"
    }
    assert_same(engine.generate(5, config=config, seed=3, prompt=[4] * 9), plain)
    assert capture.replays > int(plain.nfe.max())


def test_graphs_serve_later_generations(capture):
    config = GenerationConfig(steps=8, num_candidates=3)
    energy = ARResidualEnergy(scorer(), carry_over=True)
    _, engine, plain = both(config, energy, batch_size=4)
    engine.generate(4, config=config, seed=3)  # captures what came once
    captures, replays = capture.captures, capture.replays
    run = torch.nn.Module.__call__
    with mock.patch.object(torch.nn.Module, "__call__", autospec=True, side_effect=run) as called:
        again = engine.generate(4, config=config, seed=3)
    assert_same(again, plain)
    assert capture.captures == captures == len(engine._graphs) and not called.called
    calls = int(again.nfe.max()) + again.ess.shape[1]
    assert capture.replays - replays >= calls


def test_prefixes_need_few_graphs(capture):
    config = GenerationConfig(steps=None, num_candidates=2)
    energy = ARResidualEnergy(scorer())
    out, engine, plain = both(config, energy, batch_size=1)
    for prompt in range(1, LENGTH):
        out = engine.generate(1, config=config, seed=3, prompt=[4] * prompt)
    plain = Engine(engine.denoiser, energy, cuda_graphs=False)
    assert_same(out, plain.generate(1, config=config, seed=3, prompt=[4] * prompt))
    keys = engine._graphs._models[energy.model].calls
    prefixes = {key[-1] for key in keys if key[0][0] == "hidden_after_prefix"}
    assert len(prefixes) > 3 and prefixes <= set(range(LENGTH // 4, LENGTH, LENGTH // 8))


def test_an_engine_without_graphs_and_one_on_the_cpu(monkeypatch):
    assert Engine(denoiser()).model_graphs() is None
    monkeypatch.setattr(capture_module, "capture_on", lambda device: EmulatedCapture())
    engine = Engine(denoiser())
    kept = engine.model_graphs()
    assert kept is not None and engine.model_graphs() is kept
    engine.cuda_graphs = False
    assert engine.model_graphs() is None
    assert Engine(denoiser(), cuda_graphs=False).model_graphs() is None
    assert Engine.from_pretrained(energy=None, cuda_graphs=False).model_graphs() is None


def test_a_copy_of_an_engine_has_no_graphs(capture):
    config = GenerationConfig(steps=6, num_candidates=2)
    engine = Engine(denoiser(), ARResidualEnergy(scorer()))
    wanted = [engine.generate(3, config=config) for _ in range(3)][-1]
    twin = pickle.loads(pickle.dumps(engine))
    assert twin._graphs is None and len(engine._graphs) > 1
    assert_same(twin.generate(3, config=config), wanted)


def test_compiled_backbones_are_captured(capture):
    model, energy = denoiser(folded=True), ARResidualEnergy(scorer())
    config = GenerationConfig(steps=6, num_candidates=2)
    plain = Engine(model, energy, cuda_graphs=False).generate(2, config=config, seed=3)
    model.hidden = torch.compile(model.hidden, backend="eager", dynamic=True)
    engine = Engine(model, energy)
    for _ in range(3):
        assert_same(engine.generate(2, config=config, seed=3), plain)
    assert engine._graphs._models[model].failed == set() and len(engine._graphs) > 1


def test_one_capture_at_a_time():
    """Also of engines that share nothing: what one looks for is a setting of the process."""
    inside, most = [], []

    class Capture(EmulatedCapture):
        def __call__(self, function):
            inside.append(self)
            most.append(len(inside))
            time.sleep(0.05)
            try:
                return super().__call__(function)
            finally:
                inside.pop()

    def use(seed):
        kept, model = ModelGraphs(torch.device("cpu"), Capture()), Sums()
        for _ in range(3):
            given = (*some(4, seed=seed), 2)
            with using(kept):
                assert same(call_model(model, "hidden", *given), model.wanted(*given))
        return len(kept)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(use, range(4))) == [1] * 4
    assert most == [1] * 4


def test_threads_take_turns(capture):
    config = GenerationConfig(steps=8, num_candidates=3)
    energy = ARResidualEnergy(scorer())
    _, engine, _ = both(config, energy, batch_size=3)
    wanted = [engine.generate(3, config=config, seed=seed) for seed in range(6)]
    with ThreadPoolExecutor(3) as pool:
        got = pool.map(lambda seed: engine.generate(3, config=config, seed=seed), range(6))
        for out, plain in zip(got, wanted, strict=True):
            assert_same(out, plain)


def test_a_thread_that_inherits_the_context_runs_eagerly(on_cpu):
    """As of `asyncio.to_thread`: it does not hold the lock, and the buffer is another thread's."""
    model, given = Sums(), (*some(4), 2.0)
    with using(on_cpu), ThreadPoolExecutor(1) as pool:
        assert graphs.in_use()
        for _ in range(3):
            context = contextvars.copy_context()
            assert not pool.submit(context.run, graphs.in_use).result()
            got = pool.submit(context.run, call_model, model, "hidden", *given).result()
            assert same(got, model.wanted(*given))
        assert len(on_cpu) == 0
        for _ in range(2):
            call_model(model, "hidden", *given)
        assert len(on_cpu) == 1
