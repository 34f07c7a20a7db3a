"""The installed library against the engine: the same plans, generations and ops, bit for bit.

ctest runs it by pytest, with EDLM_PROGRAMS the folder that holds the programs and the package.
"""

import ctypes
import importlib.util
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from edlm_engine import __version__, arrays, ops
from edlm_engine.sampling.plan import plan_reveals
from edlm_engine.sampling.schedule import LogLinearSchedule
from edlm_engine.sampling.steps import steps_of

BUILD = Path(os.environ["EDLM_PROGRAMS"])
EXAMPLES = Path(__file__).parents[2] / "examples" / "cpp"
I64, F32, F64 = (ctypes.POINTER(t) for t in (ctypes.c_int64, ctypes.c_float, ctypes.c_double))


def struct(name, members):
    """A ctypes struct of "name:type" words; q int64, d double, i int32, Q and F pointers."""
    types = {"q": ctypes.c_int64, "d": ctypes.c_double, "i": ctypes.c_int32, "Q": I64, "F": F32}
    fields = [(m.split(":")[0], types[m.split(":")[1]]) for m in members.split()]
    return type(name, (ctypes.Structure,), {"_fields_": fields})


Status = struct("Status", "code:i row:q argument:i")
PlanArgs = struct(
    "PlanArgs",
    "seeds:Q canvas:Q batch:q length:q mask_id:q steps:q energy_low:d energy_high:d eps:d "
    "sigma_eps:d fill_without_energy:i",
)
Plan = struct(
    "Plan", "batch:q length:q iterations:q most_energy_steps:q steps:Q energy_steps:Q revealed_in:Q"
)
Step = struct(
    "Step",
    "sequences:q scored:q draws:q fill_draws:q reveals:q rows:Q numbers:Q times:F sigmas:F "
    "places:Q starts:Q draw_keys:Q reveal_places:Q reveal_starts:Q choice_keys:Q columns:Q",
)


@pytest.fixture(scope="module")
def library():
    (file,) = (BUILD / "package" / "installed").glob("lib*/libedlm_cpu.so")
    library = ctypes.CDLL(str(file))
    for name in ("edlm_plan_create", "edlm_plan_step"):
        getattr(library, name).restype = Status
    library.edlm_plan_destroy.argtypes = [ctypes.c_void_p]
    library.edlm_plan_destroy.restype = None
    return library


def taken(pointer, count):
    return np.ctypeslib.as_array(pointer, (count,)).copy() if count else np.zeros(0)


def test_version(library):
    major, minor, patch = map(int, __version__.split(".")[:3])
    assert library.edlm_version() == 10000 * major + 100 * minor + patch


@pytest.mark.parametrize("steps", [1, 7, 64, 1000, None])
@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.45, 0.8), (np.inf, -np.inf)])
@pytest.mark.parametrize("energy_at_fill", [True, False])
def test_plans(library, steps, low, high, energy_at_fill):
    batch, length, mask = 5, 37, 99
    canvas = torch.full((batch, length), mask)
    canvas[1, 3:20] = 7
    canvas[2] = 1  # nothing to reveal
    canvas[3, 1:] = 0
    seeds = ops.stream_keys(3, torch.arange(batch))
    want = plan_reveals(
        seeds, canvas == mask, LogLinearSchedule(), steps, (low, high), energy_at_fill
    )
    args = PlanArgs(
        ctypes.cast(seeds.data_ptr(), I64),
        ctypes.cast(canvas.data_ptr(), I64),
        *(batch, length, mask, steps or 0, low, high, 1e-5, 1e-3, not energy_at_fill),
    )
    plan = ctypes.POINTER(Plan)()
    assert library.edlm_plan_create(ctypes.byref(args), ctypes.byref(plan)).code == 0
    got = plan.contents
    assert got.iterations == want.iterations
    assert got.most_energy_steps == want.energy_steps.max()
    assert np.array_equal(taken(got.steps, batch), want.nfe)
    assert np.array_equal(taken(got.energy_steps, batch), want.energy_steps)
    assert np.array_equal(taken(got.revealed_in, batch * length), want.revealed_in.ravel())
    for j, (theirs,) in enumerate(steps_of(want, seeds)):
        step = Step()
        assert library.edlm_plan_step(plan, ctypes.c_int64(j), ctypes.byref(step)).code == 0
        e, n = len(theirs.times), len(theirs.rows)
        assert (step.sequences, step.scored) == (n, e)
        assert step.fill_draws == theirs.fill_draws
        for pointer, tensor in (
            (step.rows, theirs.rows),
            (step.numbers, theirs.numbers),
            (step.sigmas, theirs.sigmas),
            (step.places, theirs.draws),
            (step.starts, theirs.draw_starts - theirs.draw_starts[0]),
            (step.draw_keys, theirs.draw_keys),
            (step.reveal_places, theirs.reveals),
            (step.choice_keys, theirs.choice_keys),
            (step.columns, theirs.columns),
            (step.reveal_starts, theirs.reveal_starts - theirs.reveal_starts[0]),
        ):
            assert np.array_equal(taken(pointer, tensor.numel()), tensor.numpy())
        assert np.array_equal(taken(step.times, n)[:e], theirs.times.numpy())
        assert step.draws == len(theirs.draws) and step.reveals == len(theirs.reveals)
    library.edlm_plan_destroy(plan)


@pytest.mark.parametrize("steps", [*range(1, 40), 128, 999, 1024, 4096])
def test_times_of_all_steps(library, steps):
    """Of a row so long that nearly every step reveals something."""
    length = 20 * steps
    canvas, seeds = torch.zeros(1, length, dtype=torch.int64), torch.tensor([steps])
    args = PlanArgs(
        ctypes.cast(seeds.data_ptr(), I64),
        ctypes.cast(canvas.data_ptr(), I64),
        *(1, length, 0, steps, 0.0, 1.0, 1e-5, 1e-3, 0),
    )
    plan, step = ctypes.POINTER(Plan)(), Step()
    assert library.edlm_plan_create(ctypes.byref(args), ctypes.byref(plan)).code == 0
    schedule = LogLinearSchedule()
    times = schedule.times(steps)
    for j in {0, steps // 2, plan.contents.iterations - 1}:
        assert library.edlm_plan_step(plan, ctypes.c_int64(j), ctypes.byref(step)).code == 0
        time = times[step.numbers[0] - 1]
        assert step.times[0] == float(time.float())
        assert step.sigmas[0] == float(schedule.sigma(time[None]).double().float()[0])
    library.edlm_plan_destroy(plan)


@pytest.mark.parametrize(("seed", "steps"), [(0, 6), (7, 1), (-3, 40), (5, 0), (123456789012, 9)])
def test_generations(seed, steps):
    spec = importlib.util.spec_from_file_location("generate", EXAMPLES / "generate.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    want = module.main(seed, steps)
    folder = BUILD / "package" / "cmake"
    for program, lines in (("generate", want), ("generate_c", want[:1])):
        command = [folder / program, str(seed), str(steps)]
        run = subprocess.run(command, check=True, capture_output=True, text=True)
        assert run.stdout.splitlines() == lines


def random(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)) * 3


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize(("rows", "vocab"), [(9, 301), (4, 5000)])
def test_every_op_four_ways(dtype, rows, vocab):
    """C, C++, NumPy and torch: the same bytes."""
    k, scored, length = 3, 2, 5
    p, q = (random(rows, vocab, seed=s).to(dtype) for s in (1, 2))
    weights = random(rows, vocab, seed=3).abs().to(dtype)
    keys = torch.arange(rows) * 1001 - 5
    coordinates = torch.arange(2 * rows).view(rows, 2) - 3
    targets = torch.arange(rows) % 3
    log_weights = random(rows, k, seed=4)
    mask_probs = torch.linspace(1, 0, 8, dtype=torch.float64)
    places = torch.arange(rows) * length + torch.arange(rows) % length
    starts, order = torch.arange(rows + 1), torch.arange(rows).flip(0)
    columns = torch.arange(rows) % 2
    code = [torch.float32, torch.bfloat16, torch.float16].index(dtype)
    inputs = [
        *(torch.tensor([code, rows, vocab, k, scored]), p, q, weights, keys, coordinates),
        *(targets, log_weights, mask_probs, places, starts, order, columns),
    ]
    sent = b"".join(x.contiguous().view(torch.uint8).numpy().tobytes() for x in inputs)

    def every_op(library, of):
        """All results of a library whose arrays `of` makes of tensors."""
        p_, q_, weights_, keys_, coordinates_, targets_, log_weights_ = map(
            of, (p, q, weights, keys, coordinates, targets, log_weights)
        )
        first, *step = map(of, (places, starts, order))
        law = {"forbidden_id": 3, "temperature": 0.9}
        tokens, log_q = library.sample_candidates(p_, keys_, k, **law)
        cuts = {"top_k": 40, "top_p": 0.9, "min_p": 0.01, "statistics": True}
        canvas, failed = (of(torch.zeros(s, dtype=torch.int64)) for s in ((rows, length), (rows,)))
        ess, log_z = of(torch.zeros(rows, 2)), of(torch.zeros(rows, 2))
        x0 = of(torch.zeros(scored, k, length, dtype=torch.int64))
        xt, sums = library.place_candidates(
            tokens, log_q, first, *step, x0, canvas, failed, first_position=1
        )
        choice = library.reveal_chosen(
            *(log_weights_[:scored], keys_[:scored], x0, first[:scored], step[0][: scored + 1]),
            *(step[1][:scored], of(columns)[:scored], canvas, ess, log_z, failed),
            temperature=0.7,
        )
        options = {"forbidden_p": 3, "temperature_p": 0.9, "temperature_q": 1.25}
        return [
            library.stream_keys(keys_, coordinates_[:, 0], coordinates_[:, 1]),
            *library.sample_candidates(p_, keys_, k, **law, **cuts),
            library.token_log_probs(p_, targets_, **law),
            *library.sample_weights(weights_, keys_, k),
            *library.residual_draw(p_, q_, targets_, keys_, **options),
            *library.resample(log_weights_, keys_),
            library.reveal_steps(keys_, length, of(mask_probs)),
            library.sum_log_probs(log_q.reshape(-1), rows),
            *(xt, sums, x0, choice, canvas, ess, log_z, failed, tokens, log_q),
        ]

    def numpy(tensor):
        if tensor.dtype == torch.bfloat16:
            return tensor.view(torch.uint16).numpy()
        return tensor.clone().numpy()

    by_torch = [x.numpy().tobytes() for x in every_op(ops, torch.clone)]
    by_numpy = [x.tobytes() for x in every_op(arrays, numpy)]
    assert by_numpy == by_torch
    tokens, log_q = by_torch[1], by_torch[2]
    assert len(set(tokens)) > 2 and len(set(log_q)) > 2
    for program in ("edlm_same_ops_c", "edlm_same_ops_cpp"):
        run = subprocess.run([BUILD / program], input=sent, capture_output=True)
        assert run.returncode == 0, run.stderr
        assert run.stdout == b"".join(by_torch)
