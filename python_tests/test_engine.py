"""The loop: invariance, diagnostics, known tokens, errors. Distributions: test_enumeration.py."""

import dataclasses
import math
from itertools import pairwise

import pytest
import torch
from enumeration import TinyDenoiser
from tiny_models import HeadDenoiser, TableAR, table_denoiser

from edlm_engine import (
    ARResidualEnergy,
    CallableDenoiser,
    Engine,
    GenerationConfig,
    LogLinearSchedule,
    head_rows,
    ops,
)
from edlm_engine.checkpoints.native import save_model
from edlm_engine.models import ARConfig, AutoregressiveTransformer, DiT, DiTConfig

pytestmark = pytest.mark.usefixtures("single_thread")

MASK = 1
VOCAB, LENGTH = 4, 5
LATE = LogLinearSchedule(eps=0.2)


@pytest.fixture(scope="module")
def tiny():
    return TinyDenoiser(vocab=VOCAB, length=LENGTH, mask_id=MASK, tilt=0.3)


@pytest.fixture(scope="module")
def ar():
    return TableAR(VOCAB, LENGTH, forbidden_id=MASK)


@pytest.fixture(scope="module")
def engine(tiny, ar):
    return Engine(table_denoiser(tiny), ARResidualEnergy(ar), schedule=LATE)


CONFIG = GenerationConfig(steps=4, num_candidates=3, window=0.7)


def threads(count, call):
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        return call()
    finally:
        torch.set_num_threads(before)


def same_diagnostics(ours, theirs, rows):
    for name in ("nfe", "energy_evaluations", "seeds"):
        assert torch.equal(getattr(ours, name), getattr(theirs, name)[rows])
    for name in ("ess", "log_z"):
        a, b = getattr(ours, name), getattr(theirs, name)[rows]
        assert torch.equal(a.nan_to_num(-1), b[:, : a.shape[1]].nan_to_num(-1))
        assert b[:, a.shape[1] :].isnan().all()


# Invariance


@pytest.mark.parametrize("steps", [4, None])
def test_a_sequence_is_the_same_alone_and_in_any_batch(engine, steps):
    config = dataclasses.replace(CONFIG, steps=steps)
    seeds = [5, -7, 2**64 - 1, 0, 123_456_789_012, 5]
    whole = engine.generate(6, config=config, seed=seeds)
    assert torch.equal(whole.sequences[0], whole.sequences[5])
    assert len(whole.sequences.unique(dim=0)) >= 3
    for rows in ([0], [3], [4, 2, 1], [5, 4, 3, 2, 1, 0], [1] * 20):
        for count in (1, 2):
            out = threads(
                count,
                lambda rows=rows: engine.generate(
                    len(rows), config=config, seed=[seeds[b] for b in rows]
                ),
            )
            assert torch.equal(out.sequences, whole.sequences[rows])
            same_diagnostics(out, whole, rows)


def test_one_seed_is_a_stream_per_sequence(engine):
    whole = engine.generate(50, config=CONFIG, seed=7)
    again = engine.generate(50, config=CONFIG, seed=ops.stream_keys(7, torch.arange(50)))
    assert torch.equal(whole.sequences, again.sequences)
    assert torch.equal(engine.generate(3, config=CONFIG, seed=7).sequences, whole.sequences[:3])
    other = engine.generate(50, config=CONFIG, seed=8)
    assert (whole.sequences != other.sequences).any(dim=1).sum() > 40


def test_a_sequence_does_not_depend_on_the_canvases_beside_it(engine):
    canvas = torch.tensor([[0, 1, 1, 3, 1], [1] * 5, [2, 2, 2, 2, 2], [1, 1, 1, 1, 0]])
    whole = engine.generate(4, config=CONFIG, seed=[1, 2, 3, 4], canvas=canvas)
    for b in range(4):
        alone = engine.generate(1, config=CONFIG, seed=[b + 1], canvas=canvas[b : b + 1])
        assert torch.equal(alone.sequences[0], whole.sequences[b])


def test_no_two_random_numbers_share_an_address(engine, monkeypatch):
    """Over sequences, steps, positions and purposes, with and without the energy."""
    keys = []

    def recording(op, place):
        return lambda *given, **options: (keys.append(given[place]), op(*given, **options))[1]

    for name, place in (("sample_candidates", 1), ("reveal_chosen", 1), ("reveal_steps", 0)):
        monkeypatch.setattr(ops, name, recording(getattr(ops, name), place))
    engine.generate(30, config=dataclasses.replace(CONFIG, window=(0.3, 0.8)))
    keys = torch.cat(keys)
    assert len(keys) > 30 * (LENGTH + 2) and len(keys.unique()) == len(keys)


def test_batch_invariant_hides_the_batch_from_the_models(tiny, ar):
    """Models that answer differently for each batch size and number of threads."""
    base = table_denoiser(tiny)

    def moody(xt, sigma):
        bend = torch.arange(VOCAB) * (len(xt) + torch.get_num_threads() - 2) * 0.7
        return base.logits(xt, sigma) + bend

    def energy(x0, xt, log_q, t):
        assert len(x0) == len(xt) == len(t) == 1
        return ARResidualEnergy(ar)(x0, xt, log_q, t)

    denoiser = CallableDenoiser(moody, mask_id=MASK, vocab_size=VOCAB, length=LENGTH)
    config = dataclasses.replace(CONFIG, batch_invariant=True)

    def generate(batch, count):
        engine = Engine(denoiser, energy, schedule=LATE)
        out = threads(count, lambda: engine.generate(batch, config=config, seed=list(range(batch))))
        assert torch.get_num_threads() == before
        return out

    before = torch.get_num_threads()
    whole = generate(30, 2)
    for batch, count in ((1, 1), (1, 2), (7, 2), (30, 1)):
        out = generate(batch, count)
        assert torch.equal(out.sequences, whole.sequences[:batch])
        same_diagnostics(out, whole, list(range(batch)))
    plain = [
        Engine(denoiser).generate(b, config=CONFIG, seed=list(range(b))).sequences[0]
        for b in (1, 30)
    ]
    assert not torch.equal(*plain)


@pytest.fixture(scope="module")
def transformers():
    torch.manual_seed(0)
    sizes = {"vocab_size": 97, "length": 24, "hidden_dim": 32, "n_blocks": 2, "n_heads": 2}
    denoiser = DiT(DiTConfig(**sizes, mask_id=96)).eval()
    ar = AutoregressiveTransformer(ARConfig(**sizes, bos_id=0, forbidden_id=96)).eval()
    for parameter in (*denoiser.parameters(), *ar.parameters()):
        torch.nn.init.normal_(parameter, std=0.3)
    return denoiser, ar


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_batch_invariant_with_transformers(transformers, dtype):
    denoiser, ar = (model.to(dtype) for model in transformers)
    engine = Engine(denoiser, ARResidualEnergy(ar))
    config = GenerationConfig(steps=8, num_candidates=3, window=0.6, batch_invariant=True)
    whole = threads(2, lambda: engine.generate(5, config=config, seed=[10, 11, 12, 13, 14]))
    for rows in ([0], [4, 1], [3, 3, 2]):
        for count in (1, 2):
            seeds = [10 + b for b in rows]
            out = threads(
                count,
                lambda seeds=seeds: engine.generate(len(seeds), config=config, seed=seeds),
            )
            assert torch.equal(out.sequences, whole.sequences[rows])
            same_diagnostics(out, whole, rows)


@pytest.fixture(scope="module")
def bundled():
    return {dtype: Engine.from_pretrained(dtype=dtype) for dtype in (None, torch.float32)}


@pytest.mark.parametrize("dtype", [None, torch.float32])
def test_batch_invariant_with_the_bundled_model(bundled, dtype):
    config = GenerationConfig(steps=8, num_candidates=2, batch_invariant=True)
    seeds = [10, 11, 12]
    whole = threads(2, lambda: bundled[dtype].generate(3, config=config, seed=seeds))
    for rows, count in (([0], 1), ([2, 1], 2), ([1, 1, 0], 1)):
        given = {"seed": [seeds[b] for b in rows], "config": config}
        out = threads(
            count, lambda given=given: bundled[dtype].generate(len(given["seed"]), **given)
        )
        assert torch.equal(out.sequences, whole.sequences[rows])
        same_diagnostics(out, whole, rows)


# The head and its workspace


class Headless:
    """A denoiser that shows its logits only."""

    def __init__(self, model):
        self.mask_id, self.vocab_size, self.length = model.mask_id, model.vocab_size, model.length
        self.logits = model.logits


@pytest.mark.parametrize("window", [1.0, 0.4])
def test_the_fused_head_draws_what_full_logits_draw(bundled, window):
    engine = bundled[torch.float32]
    config = GenerationConfig(steps=8, num_candidates=2, window=window)
    fused = engine.generate(2, config=config, seed=3)
    full = Engine(Headless(engine.denoiser), engine.energy).generate(2, config=config, seed=3)
    assert torch.equal(fused.sequences, full.sequences)
    torch.testing.assert_close(fused.log_z, full.log_z, rtol=0, atol=1e-2, equal_nan=True)


@pytest.mark.parametrize("window", [1.0, (0.2, 0.6)])
def test_one_workspace_serves_both_heads_and_all_steps(transformers, monkeypatch, window):
    allocated = []
    op = ops.head_workspace
    monkeypatch.setattr(
        head_rows, "head_workspace", lambda *given: (allocated.append(given), op(*given))[1]
    )
    denoiser, ar = transformers
    engine = Engine(denoiser, ARResidualEnergy(ar, max_tokens=24))
    for runs in (1, 2):
        engine.generate(3, config=GenerationConfig(steps=6, num_candidates=3, window=window))
        assert len(allocated) == runs
    ops.head_token_log_probs(torch.zeros(5, 7), torch.zeros(9, 7), torch.zeros(5).long())
    assert len(allocated) == 3  # outside a generation each call has its own


def test_candidates_share_one_buffer(tiny):
    kept = []

    def energy(x0, xt, log_q, t):
        kept.append(x0)
        return log_q

    assert Engine(table_denoiser(tiny), energy).generate(5, config=CONFIG).nfe.sum() > 5
    assert len(kept) > 1 and len({x0.data_ptr() for x0 in kept}) == 1


# What a generation reports


def test_shapes_and_types(engine):
    out = engine.generate(3, config=CONFIG)
    assert out.sequences.shape == (3, LENGTH) and out.sequences.dtype == torch.int64
    assert out.texts is None and (out.sequences != MASK).all()
    assert out.nfe.shape == (3,) and out.nfe.dtype == torch.int64
    assert out.energy_evaluations.dtype == torch.int64
    assert out.ess.shape == out.log_z.shape == (3, out.ess.shape[1])
    assert out.ess.dtype == out.log_z.dtype == torch.float32
    for value in (out.sequences, out.seeds, out.nfe, out.energy_evaluations, out.ess, out.log_z):
        value.add_(1)  # the user's own: not bound to inference mode


@pytest.mark.parametrize("candidates", [2, 5])
def test_ess_is_in_range_and_present_for_each_energy_step(engine, candidates):
    config = dataclasses.replace(CONFIG, num_candidates=candidates)
    out = engine.generate(200, config=config)
    energy_steps = out.energy_evaluations // candidates
    assert torch.equal(out.energy_evaluations % candidates, torch.zeros(200, dtype=torch.int64))
    present = torch.arange(out.ess.shape[1]) < energy_steps[:, None]
    assert torch.equal(~out.ess.isnan(), present) and torch.equal(~out.log_z.isnan(), present)
    assert out.ess.shape[1] == energy_steps.max() > energy_steps.min()
    assert out.ess[present].min() >= 1 and out.ess[present].max() <= candidates
    assert 1.01 < out.ess[present].mean() < candidates - 0.01


def test_a_constant_energy(tiny):
    def energy(x0, xt, log_q, t):
        return torch.full(x0.shape[:2], 2.5)

    config = dataclasses.replace(CONFIG, energy_temperature=0.5)
    out = Engine(table_denoiser(tiny), energy).generate(4, config=config)
    assert (out.ess[~out.ess.isnan()] == 3).all()
    assert (out.log_z[~out.log_z.isnan()] == -5).all()


def test_nfe_counts_calls_and_stays_flat_as_the_batch_grows(tiny):
    seen = []
    base = table_denoiser(tiny)

    def logits(xt, sigma):
        seen.append(len(xt))
        return base.logits(xt, sigma)

    counting = CallableDenoiser(logits, mask_id=MASK, vocab_size=VOCAB, length=LENGTH)
    config = GenerationConfig(steps=8, num_candidates=1)
    expected = 8 * (1 - (1 - 1 / 8) ** LENGTH)
    for batch in (1, 40, 1000):
        seen.clear()
        out = Engine(counting).generate(batch, config=config)
        assert sum(seen) == out.nfe.sum() and len(seen) == out.nfe.max() <= LENGTH
        if batch > 1:
            assert abs(out.nfe.double().mean() - expected) < 4 * out.nfe.double().std() / batch**0.5


@pytest.mark.parametrize("with_head", [False, True])
def test_only_what_is_needed_is_drawn(tiny, ar, monkeypatch, with_head):
    """Plain steps draw each position once; energy steps all masked positions."""
    denoiser = HeadDenoiser(tiny) if with_head else table_denoiser(tiny)
    name = "head_sample_candidates" if with_head else "sample_candidates"
    rows = []
    op = getattr(ops, name)
    monkeypatch.setattr(ops, name, lambda x, *a, **k: (rows.append(len(x)), op(x, *a, **k))[1])
    Engine(denoiser).generate(20, config=GenerationConfig(steps=4, num_candidates=3))
    assert sum(rows) == 20 * LENGTH
    rows.clear()
    masked = []

    def energy(x0, xt, log_q, t):
        masked.append(int((xt == MASK).sum()))
        return log_q

    Engine(denoiser, energy).generate(20, config=GenerationConfig(steps=4, num_candidates=3))
    assert rows == masked and sum(rows) > 20 * LENGTH


def test_an_energy_sees_whole_candidates_and_their_log_q(tiny):
    base = table_denoiser(tiny)

    def energy(x0, xt, log_q, t):
        hidden = (xt == MASK)[:, None]
        assert x0.shape == (len(xt), 3, LENGTH) and (x0 != MASK).all()
        assert torch.equal(torch.where(hidden, MASK, x0), xt[:, None].expand_as(x0))
        logits = base.logits(xt, LATE.sigma(t.double()).float()) / 0.8
        logits[..., MASK] = -math.inf
        log_probs = logits.log_softmax(-1)[:, None].expand(-1, 3, -1, -1)
        each = log_probs.gather(-1, x0[..., None])[..., 0]
        assert torch.allclose(log_q, (each * hidden).sum(-1), rtol=0, atol=1e-5)
        assert log_q.dtype == t.dtype == torch.float32 and t.shape == (len(xt),)
        calls.append(len(xt))
        return -log_q

    calls = []
    config = dataclasses.replace(CONFIG, temperature=0.8)
    out = Engine(base, energy, schedule=LATE).generate(30, config=config)
    assert sum(calls) * 3 == out.energy_evaluations.sum() > 0


def test_log_q_of_an_energy_is_a_sum_on_the_grid():
    """Of multiples of 2^-30, whose sum knows no order; log q of a likely candidate is finer."""
    seen = []

    def energy(x0, xt, log_q, t):
        seen.append(log_q.double().flatten())
        return log_q

    peaked = torch.linspace(0, 12, 7).expand(9, 6, 7)
    denoiser = CallableDenoiser(
        lambda xt, sigma: peaked[: len(xt)], mask_id=0, vocab_size=7, length=6
    )
    config = GenerationConfig(steps=3, temperature=0.2)
    Engine(denoiser, energy).generate(9, config=config)
    fine = torch.cat(seen)[torch.cat(seen) > -(2.0**-7)] * 2.0**30
    assert len(fine) > 50 and (fine == fine.round()).all()


class Guided:
    """E of x0 to first order around xt, by autograd: V(xt) = <table, xt>^2 / 2, xt as one-hot."""

    needs_grad = True

    def __init__(self):
        self.table = torch.randn(LENGTH, VOCAB, generator=torch.Generator().manual_seed(3))

    def one_hot(self, tokens):
        return torch.nn.functional.one_hot(tokens, VOCAB).float()

    def slope(self, xt):
        with torch.enable_grad():
            soft = self.one_hot(xt).requires_grad_()
            potential = (soft * self.table).sum((1, 2)) ** 2 / 2
            return torch.autograd.grad(potential.sum(), soft)[0]

    def slope_by_hand(self, xt):
        return (self.one_hot(xt) * self.table).sum((1, 2), keepdim=True) * self.table

    def energy(self, x0, xt, log_q, t):
        assert not torch.is_grad_enabled() and not xt.is_inference()
        return (self.one_hot(x0) * self.slope(xt)[:, None]).sum((2, 3))


@pytest.mark.parametrize("outer", [torch.no_grad, torch.enable_grad, torch.inference_mode])
def test_guidance_by_gradients(tiny, outer):
    guided = Guided()

    def by_hand(x0, xt, log_q, t):
        assert torch.is_inference_mode_enabled()
        return (guided.one_hot(x0) * guided.slope_by_hand(xt)[:, None]).sum((2, 3))

    with outer():
        got = Engine(table_denoiser(tiny), guided).generate(20, config=CONFIG)
        want = Engine(table_denoiser(tiny), by_hand).generate(20, config=CONFIG)
    assert torch.equal(got.sequences, want.sequences)
    assert torch.allclose(got.ess, want.ess, equal_nan=True) and got.ess.nanmean() < 2.9


def test_a_denoiser_that_takes_gradients(tiny):
    guided, base = Guided(), table_denoiser(tiny)

    def engine(slope, needs_grad):
        denoiser = table_denoiser(tiny)
        denoiser.logits = lambda xt, sigma: base.logits(xt, sigma) - slope(xt)
        denoiser.needs_grad = needs_grad
        return Engine(denoiser)

    got = engine(guided.slope, True).generate(20, config=CONFIG)
    want = engine(guided.slope_by_hand, False).generate(20, config=CONFIG)
    assert torch.equal(got.sequences, want.sequences)


@pytest.mark.parametrize("temperature", [1e-30, 1e30])
def test_extreme_temperatures(tiny, temperature):
    """The bounds of the configuration are within those of the ops."""
    out = Engine(table_denoiser(tiny)).generate(
        40, config=dataclasses.replace(CONFIG, temperature=temperature)
    )
    assert (out.sequences != MASK).all()


@pytest.mark.parametrize("batch_invariant", [False, True])
def test_an_energy_may_ask_where_xt_is_masked(tiny, batch_invariant):
    calls = []

    def energy(x0, xt, log_q, t, masked):
        assert torch.equal(torch.from_numpy(masked), xt == MASK)
        calls.append(len(xt))
        return log_q

    config = dataclasses.replace(CONFIG, window=(0.3, 0.8), batch_invariant=batch_invariant)
    out = Engine(table_denoiser(tiny), energy, schedule=LATE).generate(9, config=config)
    assert sum(calls) * 3 == out.energy_evaluations.sum() > 0


def test_an_energy_may_be_an_object_with_the_method(tiny, ar, engine):
    class Scorer(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.right = ARResidualEnergy(ar)

        def energy(self, x0, xt, log_q, t):
            return self.right(x0, xt, log_q, t)

    out = Engine(table_denoiser(tiny), Scorer(), schedule=LATE).generate(9, config=CONFIG)
    assert torch.equal(out.sequences, engine.generate(9, config=CONFIG).sequences)


@pytest.mark.parametrize(("window", "some"), [(0, False), (0.1, True), ((0.0, 0.0), False)])
def test_window_edges(engine, window, some):
    """A window of 0 is plain MDLM; any other holds t = 1, the first transition's time."""
    config = dataclasses.replace(CONFIG, window=window)
    out = engine.generate(40, config=config)
    plain = engine.generate(40, config=dataclasses.replace(config, num_candidates=1))
    assert (out.energy_evaluations.sum() > 0) == some
    assert torch.equal(out.sequences, plain.sequences) != some
    assert torch.equal(out.nfe, plain.nfe)


def test_final_argmax_fills_with_the_most_probable_token(tiny, ar):
    base = table_denoiser(tiny)
    before = []

    def logits(xt, sigma):
        before.append((xt, base.logits(xt, sigma)))
        return before[-1][1]

    denoiser = CallableDenoiser(logits, mask_id=MASK, vocab_size=VOCAB, length=LENGTH)
    schedule = LogLinearSchedule(eps=0.999)
    for energy in (None, ARResidualEnergy(ar)):
        config = GenerationConfig(steps=1, num_candidates=3, final="argmax")
        out = Engine(denoiser, energy, schedule=schedule).generate(60, config=config)
        _, scores = before[0]
        scores = scores.index_fill(2, torch.tensor([MASK]), -math.inf)
        untouched = out.energy_evaluations == 0
        assert untouched.sum() > 40
        assert torch.equal(out.sequences[untouched], scores.argmax(2)[untouched])
        before.clear()


def test_a_tiny_nucleus_is_greedy():
    timeless = table_denoiser(TinyDenoiser(VOCAB, LENGTH, MASK))
    canvas = torch.tensor([[0, MASK, 2, 3, 0], [0, 2, 2, 3, MASK]])
    scores = timeless.logits(canvas, torch.zeros(2))
    scores[..., MASK] = -math.inf
    config = GenerationConfig(steps=4, num_candidates=1, top_p=1e-9)
    out = Engine(timeless).generate(40, config=config, canvas=canvas.repeat(20, 1))
    greedy = torch.where(canvas == MASK, scores.argmax(2), canvas)
    assert torch.equal(out.sequences, greedy.repeat(20, 1))


def test_callback_sees_tokens_appear_and_stay(engine):
    history = []

    def callback(iteration, iterations, xt):
        assert iteration == len(history) + 1
        history.append((iterations, xt.clone()))

    out = engine.generate(8, config=CONFIG, callback=callback)
    assert len(history) == out.nfe.max() == history[0][0]
    assert torch.equal(history[-1][1], out.sequences)
    for (_, earlier), (_, later) in pairwise(history):
        shown = earlier != MASK
        assert torch.equal(earlier[shown], later[shown])
        assert (later != MASK).sum() > shown.sum()


def test_progress_bar_counts_evaluations(engine, capsys):
    out = engine.generate(3, config=CONFIG, progress=True)
    total = int(out.nfe.sum())
    assert f"nfe={total}/{total}" in capsys.readouterr().err
    engine.generate(3, config=CONFIG)
    assert capsys.readouterr().err == ""


# Known tokens


class Letters:
    """A tokenizer of four letters, b standing for the mask."""

    def encode(self, text):
        return ["abcd".index(letter) for letter in text]

    def decode(self, ids):
        return "".join("abcd"[i] for i in ids)


@pytest.mark.parametrize(
    ("prompt", "suffix", "starts", "ends"),
    [
        ([0, 2], None, [[0, 2]] * 3, [[]] * 3),
        (torch.tensor([3]), torch.tensor([[0], [2], [3]]), [[3]] * 3, [[0], [2], [3]]),
        ([[0], [], [2, 3]], [[3, 3], [0], []], [[0], [], [2, 3]], [[3, 3], [0], []]),
        ("ac", "d", [[0, 2]] * 3, [[3]] * 3),
        (["a", "", "cdca"], None, [[0], [], [2, 3, 2, 0]], [[]] * 3),
        ([0, 2, 3], [2, 2], [[0, 2, 3]] * 3, [[2, 2]] * 3),
    ],
)
def test_prompt_and_suffix_never_change(tiny, ar, prompt, suffix, starts, ends):
    engine = Engine(table_denoiser(tiny), ARResidualEnergy(ar), tokenizer=Letters())
    out = engine.generate(3, config=CONFIG, prompt=prompt, suffix=suffix)
    for row, text, start, end in zip(out.sequences.tolist(), out.texts, starts, ends, strict=True):
        assert row[: len(start)] == start and row[LENGTH - len(end) :] == end
        assert MASK not in row and text == Letters().decode(row)


def test_a_canvas_never_changes(engine):
    generator = torch.Generator().manual_seed(0)
    canvas = torch.randint(VOCAB, (50, LENGTH), generator=generator)
    given = canvas.clone()
    out = engine.generate(50, config=CONFIG, canvas=canvas)
    known = given != MASK
    assert torch.equal(out.sequences[known], given[known]) and (out.sequences != MASK).all()
    assert torch.equal(canvas, given)
    assert (out.nfe <= (~known).sum(dim=1)).all()


def test_nothing_to_do(engine):
    canvas = torch.full((2, LENGTH), 3)
    out = engine.generate(2, config=CONFIG, canvas=canvas)
    assert torch.equal(out.sequences, canvas) and out.nfe.tolist() == [0, 0]
    assert out.ess.shape == (2, 0)


def test_a_shorter_length(transformers):
    denoiser, ar = transformers
    engine = Engine(denoiser, ARResidualEnergy(ar))
    config = GenerationConfig(steps=4, num_candidates=2, length=10)
    assert engine.generate(2, config=config).sequences.shape == (2, 10)


# Loading


@pytest.fixture
def folder(tmp_path, transformers):
    denoiser, ar = transformers
    save_model(denoiser.float(), tmp_path / "denoiser")
    save_model(ar.float(), tmp_path / "ar")
    return tmp_path


@pytest.mark.parametrize(
    ("energy", "carry_over"), [("default", None), (None, None), ("ar", False), ("coar", True)]
)
def test_from_pretrained(folder, transformers, energy, carry_over):
    engine = Engine.from_pretrained(folder, energy=energy, dtype=torch.float32)
    assert (engine.energy is None) == (carry_over is None)
    by_hand = None
    if carry_over is not None:
        assert engine.energy.carry_over == carry_over
        by_hand = ARResidualEnergy(transformers[1], carry_over)
    config = GenerationConfig(steps=4, num_candidates=3)
    out = engine.generate(3, config=config)
    same = Engine(transformers[0], by_hand).generate(3, config=config)
    assert torch.equal(out.sequences, same.sequences)


def test_from_pretrained_with_an_energy_elsewhere(folder, tmp_path):
    (folder / "ar").rename(folder / "scorer")
    engine = Engine.from_pretrained(folder, energy=folder / "scorer", dtype=torch.bfloat16)
    assert not engine.energy.carry_over
    assert engine.energy.model.head[0].dtype == engine.denoiser.head[0].dtype == torch.bfloat16
    with pytest.raises(FileNotFoundError, match="no model at"):
        Engine.from_pretrained(folder, energy="ar")


@pytest.mark.parametrize("processor", [True, False])
def test_bfloat16_blocks_by_default_where_the_processor_has_them(
    folder, monkeypatch, caplog, processor
):
    for name in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, name, lambda: processor)
    with caplog.at_level("INFO"):
        engine = Engine.from_pretrained(folder, energy="ar")
    fast = torch.bfloat16 if processor else torch.float32
    for model in (engine.denoiser, engine.energy.model):
        assert model.head[0].dtype == torch.float32
        assert {p.dtype for p in model.blocks.parameters()} == {fast}
    assert ("float32 blocks: cpu has no AVX-512 BF16 or AMX" in caplog.text) != processor
    assert engine.generate(2, config=GenerationConfig(steps=4, num_candidates=2)).ess.numel()


def test_from_pretrained_compiles_the_backbones(folder, monkeypatch):
    compiled = []
    to_compiled = torch.compile

    def compile_eagerly(function, **options):
        compiled.append(function)
        return to_compiled(function, backend="eager", **options)

    monkeypatch.setattr(torch, "compile", compile_eagerly)
    options = {"energy": "ar", "dtype": torch.float32}
    engine = Engine.from_pretrained(folder, compile=True, **options)
    assert [method.__name__ for method in compiled] == [
        "hidden",  # of the denoiser
        "hidden",
        "hidden_after_prefix",
    ]
    config = GenerationConfig(steps=3, num_candidates=2)
    plain = Engine.from_pretrained(folder, **options).generate(3, config=config, prompt=[5] * 9)
    out = engine.generate(3, config=config, prompt=[5] * 9)
    assert torch.equal(out.sequences, plain.sequences)


def test_from_pretrained_errors(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model at .*nowhere"):
        Engine.from_pretrained(tmp_path / "nowhere")
    for dtype in ("float33", torch.int64):
        with pytest.raises(TypeError, match=f"dtype must be None, a floating.* got {dtype!r}"):
            Engine.from_pretrained(dtype=dtype)


# Errors


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("num_candidates", 0, ">= 1, got 0"),
        ("steps", 0, ">= 1, got 0"),
        ("steps", -3, ">= 1, got -3"),
        ("length", 0, ">= 1, got 0"),
        ("window", -0.1, r"in \[0, 1\], got -0.1"),
        ("window", 1.5, r"in \[0, 1\], got 1.5"),
        ("window", math.nan, r"in \[0, 1\], got nan"),
        ("window", (0.6, 0.4), r"low <= high <= 1, got \(0.6, 0.4\)"),
        ("window", (-0.5, 0.5), "0 <= low"),
        ("window", (0.5, 1.5), "high <= 1"),
        ("temperature", 0.0, r"in \[1e-30, 1e30\], got 0.0"),
        ("temperature", math.nan, r"in \[1e-30, 1e30\], got nan"),
        ("temperature", 1e31, r"in \[1e-30, 1e30\], got 1e\+31"),
        ("temperature", 1e-31, r"in \[1e-30, 1e30\], got 1e-31"),
        ("energy_temperature", -1.0, r"in \[1e-30, 1e30\], got -1.0"),
        ("top_p", 0.0, r"in \(0, 1\], got 0.0"),
        ("top_p", 1.1, r"in \(0, 1\], got 1.1"),
        ("final", "greedy", '"sample" or "argmax", got \'greedy\''),
    ],
)
def test_bad_config_values(field, value, rule):
    with pytest.raises(ValueError, match=f"{field} must be .*{rule}"):
        GenerationConfig(**{field: value})


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 1.5),
        ("num_candidates", None),
        ("window", "all"),
        ("window", (0.1, 0.2, 0.3)),
        ("window", (0.1, "1")),
        ("temperature", "hot"),
        ("batch_invariant", 1),
        ("steps", True),
        ("temperature", True),
    ],
)
def test_wrong_config_types(field, value):
    with pytest.raises(TypeError, match=f"{field} must be"):
        GenerationConfig(**{field: value})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 0}, "batch_size must be >= 1, got 0"),
        ({"config": GenerationConfig(length=6)}, "length must be <= 5, .* got 6"),
        ({"prompt": [0] * 6}, r"must fit the length 5, got 6 \+ 0 tokens in sequence 0"),
        ({"prompt": [[0], [0, 2, 3]], "suffix": [0] * 3}, r"got 3 \+ 3 tokens in sequence 1"),
        ({"prompt": [0, 4]}, r"prompt must hold tokens in \[0, 4\), got 4"),
        ({"suffix": [-1]}, r"suffix must hold tokens in \[0, 4\), got -1"),
        ({"prompt": [0, MASK]}, "prompt must not hold the mask token 1"),
        ({"prompt": [[0], [0], [0]]}, "prompt must hold 2 rows, one per sequence, got 3"),
        ({"prompt": "abc"}, "prompt is text, but the engine has no tokenizer"),
        (
            {"canvas": torch.ones(2, 4).long()},
            r"canvas must be int64 with shape \[2, 5\], got int64",
        ),
        ({"canvas": torch.ones(2, 5)}, r"canvas must be int64 .* got float32 \[2, 5\]"),
        ({"canvas": torch.full((2, 5), 9)}, r"canvas must hold tokens in \[0, 4\), got 9"),
        ({"canvas": torch.ones(2, 5).long(), "prompt": [0]}, "canvas must be given alone"),
        ({"seed": [1, 2, 3]}, "seed must hold 2 values, one per sequence, got 3"),
        ({"seed": torch.arange(1)}, "seed must hold 2 values, one per sequence, got 1"),
        ({"seed": 2**64}, "64 bits"),
    ],
)
def test_bad_arguments(engine, arguments, message):
    with pytest.raises(ValueError, match=message):
        engine.generate(**{"batch_size": 2, "config": CONFIG, **arguments})


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"batch_size": 2.5}, "batch_size must be of type int, got 2.5"),
        ({"batch_size": True}, "batch_size must be of type int, got True"),
        ({"batch_size": "3"}, "batch_size must be of type int, got '3'"),
        ({"seed": 0.5}, "seed must be an int or one int per sequence"),
        ({"seed": [0.5, 1]}, "seed must be an int or one int per sequence"),
        ({"prompt": [0.5, 1]}, "prompt must be text or integer tokens"),
        ({"prompt": 3}, "prompt must be text or integer tokens"),
        ({"prompt": torch.zeros(2, 1, 1).long()}, "prompt must be text or integer tokens"),
        ({"prompt": torch.zeros(3)}, "prompt must be text or integer tokens"),
        ({"canvas": [[0] * 5] * 2}, "canvas must be a tensor, got list"),
    ],
)
def test_wrong_argument_types(engine, arguments, message):
    with pytest.raises(TypeError, match=message):
        engine.generate(**{"batch_size": 2, "config": CONFIG, **arguments})


def test_a_mask_outside_the_vocabulary():
    denoiser = CallableDenoiser(lambda xt, sigma: xt, mask_id=4, vocab_size=4, length=2)
    with pytest.raises(ValueError, match=r"mask_id must be in \[0, 4\), got 4"):
        Engine(denoiser)


@pytest.mark.parametrize(
    ("mask_id", "known", "fits"),
    [
        *((1, 4, True), (1, 3, False), (1, 5, False)),
        *((3, 4, True), (3, 3, True), (3, 2, False), (3, 5, False)),
    ],
)
def test_an_energy_has_the_vocabulary_of_the_denoiser(mask_id, known, fits):
    """With the mask in the last row, also that without it."""
    denoiser = table_denoiser(TinyDenoiser(vocab=4, length=2, mask_id=mask_id))
    energy = ARResidualEnergy(TableAR(known, 2))
    if fits:
        assert Engine(denoiser, energy).generate(2).nfe.sum()
        return
    with pytest.raises(ValueError, match=f"the denoiser's vocabulary of 4 .*got one of {known}"):
        Engine(denoiser, energy)


def test_an_energy_of_shorter_texts(tiny):
    short = Engine(table_denoiser(tiny), ARResidualEnergy(TableAR(VOCAB, LENGTH - 1)))
    with pytest.raises(ValueError, match="length must be <= 4"):
        short.generate(1)


def test_a_vocabulary_of_nothing_but_the_mask():
    denoiser = CallableDenoiser(lambda xt, sigma: xt, mask_id=0, vocab_size=1, length=2)
    with pytest.raises(ValueError, match=r"vocab_size must be >= 2, .* got 1"):
        Engine(denoiser)


@pytest.mark.parametrize("field", ["mask_id", "vocab_size", "length"])
@pytest.mark.parametrize("value", [2.5, True, "3"])
def test_sizes_of_a_denoiser_are_integers(tiny, field, value):
    denoiser = table_denoiser(tiny)
    setattr(denoiser, field, value)
    with pytest.raises(TypeError, match=f"denoiser's {field} must be of type int, got {value!r}"):
        Engine(denoiser)


def test_what_is_no_energy_is_named(tiny):
    with pytest.raises(TypeError, match=r"energy must have a method energy, .* got 'ar'"):
        Engine(table_denoiser(tiny), "ar")


def test_a_module_without_the_protocol_is_no_denoiser():
    with pytest.raises(TypeError, match=r"must have mask_id, .*, got Linear: .*CallableDenoiser\("):
        Engine(torch.nn.Linear(2, 2))
    module = torch.nn.Linear(2, 2)
    module.mask_id, module.vocab_size, module.length = 1, 2, 2
    with pytest.raises(TypeError, match="must have logits, got Linear"):
        Engine(module)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
@pytest.mark.parametrize("with_head", [False, True])
def test_bad_logits(tiny, bad, with_head):
    broken = TinyDenoiser(VOCAB, LENGTH, MASK)
    broken.table[:, 2, 3] = bad
    denoiser = HeadDenoiser(broken) if with_head else table_denoiser(broken)
    with pytest.raises(RuntimeError, match=r"logits row \d+ holds NaN or \+inf"):
        Engine(denoiser).generate(2, config=CONFIG)


@pytest.mark.parametrize(
    ("value", "message"),
    [(math.nan, "log_weights row 0 holds NaN"), (math.inf, "log_weights row 0 allows nothing")],
)
def test_bad_energies(tiny, value, message):
    engine = Engine(table_denoiser(tiny), lambda x0, *_: torch.full(x0.shape[:2], value))
    with pytest.raises(RuntimeError, match=message):
        engine.generate(2, config=CONFIG)


def test_wrong_shapes_from_models(tiny, engine):
    narrow = CallableDenoiser(
        lambda xt, sigma: torch.zeros(len(xt), LENGTH, VOCAB - 1),
        mask_id=MASK,
        vocab_size=VOCAB,
        length=LENGTH,
    )
    with pytest.raises(ValueError, match=r"logits must have shape \[2, 5, 4\], got \[2, 5, 3\]"):
        Engine(narrow).generate(2, config=CONFIG)
    flat = Engine(table_denoiser(tiny), lambda x0, xt, log_q, t: log_q.flatten())
    with pytest.raises(ValueError, match=r"energy must have shape \[\d, 3\], got \[\d+\]"):
        flat.generate(2, config=GenerationConfig(steps=4, num_candidates=3))


@pytest.mark.parametrize("wrong", [None, [1.0], "numpy"])
@pytest.mark.parametrize("with_head", [False, True])
def test_models_that_return_no_tensors(tiny, wrong, with_head):
    def answer(like):
        return like.numpy() if wrong == "numpy" else wrong

    denoiser = HeadDenoiser(tiny) if with_head else table_denoiser(tiny)
    name = "hidden" if with_head else "logits"
    right = getattr(denoiser, name)
    setattr(denoiser, name, lambda xt, sigma: answer(right(xt, sigma)))
    kind = {"numpy": "ndarray", None: "NoneType"}.get(wrong if wrong != [1.0] else "", "list")
    with pytest.raises(TypeError, match=f"the denoiser's {name} must be a tensor, got {kind}"):
        Engine(denoiser).generate(2, config=CONFIG)
    engine = Engine(table_denoiser(tiny), lambda x0, xt, log_q, t: answer(log_q))
    with pytest.raises(TypeError, match=f"the energy must be a tensor, got {kind}"):
        engine.generate(2, config=CONFIG)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda values: values + 0j, "must hold real numbers, got torch.complex64"),
        (lambda values: values > 0, "must hold real numbers, got torch.bool"),
        (lambda values: values.to("meta"), "must be on cpu, got meta"),
    ],
)
def test_models_that_return_other_tensors(tiny, change, message):
    denoiser = table_denoiser(tiny)
    energy = Engine(denoiser, lambda x0, xt, log_q, t: change(log_q))
    with pytest.raises(ValueError, match=f"the energy {message}"):
        energy.generate(2, config=CONFIG)
    right = denoiser.logits
    denoiser.logits = lambda xt, sigma: change(right(xt, sigma))
    with pytest.raises(ValueError, match=f"the denoiser's logits {message}"):
        Engine(denoiser).generate(2, config=CONFIG)


def test_candidates_take_memory_with_an_energy_only(tiny):
    engine = Engine(table_denoiser(tiny))
    assert engine.generate(2, config=GenerationConfig(num_candidates=2**40)).nfe.sum()


@pytest.mark.parametrize("with_head", [False, True])
def test_models_that_write_into_xt_change_no_known_token(tiny, ar, with_head):
    denoiser = HeadDenoiser(tiny) if with_head else table_denoiser(tiny)
    residual = ARResidualEnergy(ar)
    name = "hidden" if with_head else "logits"
    right = getattr(denoiser, name)
    wanted = Engine(denoiser, residual).generate(20, config=CONFIG, prompt=[3, 2], suffix=[0])

    def careless(xt, sigma):
        values = right(xt, sigma)
        xt.fill_(2)
        return values

    def energy(x0, xt, log_q, t, masked):
        values = residual.energy(x0, xt, log_q, t, masked)
        xt.fill_(2)
        return values

    energy.first_position = ar.first_position
    setattr(denoiser, name, careless)
    out = Engine(denoiser, energy).generate(20, config=CONFIG, prompt=[3, 2], suffix=[0])
    assert torch.equal(out.sequences, wanted.sequences)
    assert (out.sequences[:, :2] == torch.tensor([3, 2])).all()


def test_repr_is_short(engine):
    class Long:
        def decode(self, ids):
            return "word " * 1000

    out = Engine(engine.denoiser, engine.energy, Long()).generate(50, config=CONFIG)
    assert len(repr(out)) < 400 and repr(out).count("\n") <= 2
    assert "sequences [50, 5]" in repr(out) and "word word" in repr(out)


def test_failures_of_the_device_are_reported_at_the_end(tiny, monkeypatch):
    """On CUDA a bad row gives token -1 and no error: no model may see it, and the run must fail."""
    op = ops.sample_candidates

    def failing(logits, keys, *given, **options):
        tokens, log_q = op(logits, keys, *given, **options)
        bad = keys == doomed
        return tokens.masked_fill(bad[:, None], -1), log_q.masked_fill(bad[:, None], math.nan)

    seen = []
    base = table_denoiser(tiny)

    def logits(xt, sigma):
        seen.append(int(xt.min()))
        return base.logits(xt, sigma)

    denoiser = CallableDenoiser(logits, mask_id=MASK, vocab_size=VOCAB, length=LENGTH)
    engine = Engine(denoiser)
    config = GenerationConfig(steps=None)
    keys = []
    monkeypatch.setattr(
        ops, "sample_candidates", lambda x, k, *a, **o: (keys.append(k), op(x, k, *a, **o))[1]
    )
    engine.generate(4, config=config)
    doomed = keys[1][2]  # the second step of sequence 2
    monkeypatch.setattr(ops, "sample_candidates", failing)
    with pytest.raises(RuntimeError, match="in 1 of 4 sequences, the first of them 2"):
        engine.generate(4, config=config)
    assert len(seen) == 2 * LENGTH and min(seen) >= 0
