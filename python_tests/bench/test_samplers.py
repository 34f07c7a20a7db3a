"""The comparison of samplers: what is counted, what is measured, and the page."""

import json
import sys
import types

import numpy as np
import pytest
import torch
from enumeration import p_value

from bench.samplers.canvases import gaps
from bench.samplers.counting import Counted, counted
from bench.samplers.given import (
    ADAPTIVE,
    brought,
    left_to_right,
    ours,
    released,
    samplers,
    with_carry_over,
)
from bench.samplers.oracle import oracle_problems
from bench.samplers.pair import pair_problems
from bench.samplers.run import Asked, Task, add_shares, run, summary
from edlm_engine import ARResidualEnergy, Engine
from edlm_engine.evaluation.oracle import HiddenMarkov, OracleAR, OracleDenoiser

pytestmark = pytest.mark.usefixtures("single_thread")

LENGTH, TOKENS = 4, 3
LAW = HiddenMarkov.chain(torch.full((TOKENS,), 1 / TOKENS), torch.eye(TOKENS) * 0.7 + 0.1)
DENOISER, ENERGY = OracleDenoiser(LAW, LENGTH), ARResidualEnergy(OracleAR(LAW, LENGTH))
FREE = torch.full((8, LENGTH), TOKENS)


def work(compared, canvas=FREE, energy=ENERGY):
    return counted(compared.sample, DENOISER, energy, canvas, range(len(canvas)))


def test_calls_of_the_models_are_counted():
    plain = work(ours("MDLM", steps=1))
    assert (plain.nfe == 1).all() and (plain.energy_evaluations == 0).all()
    assert (plain.depth, plain.ar_depth) == (1, 0)
    assert (plain.positions == LENGTH).all()
    joint = work(ours("joint", True, num_candidates=5, steps=1))
    assert (joint.nfe == 1).all() and (joint.energy_evaluations == 5).all()
    assert (joint.depth, joint.ar_depth) == (1, 1)
    assert (joint.positions == 6 * LENGTH).all()
    smc = work(ours("smc", True, correction="smc", num_candidates=5, steps=1))
    assert (smc.nfe == 5).all() and (smc.energy_evaluations == 5).all()
    alone = work(left_to_right())
    assert (alone.nfe == 0).all() and (alone.energy_evaluations == 1).all()
    assert alone.ar_depth == LENGTH


def test_parts_of_a_pass_are_counted_as_parts():
    model = types.SimpleNamespace(
        hidden_step=lambda *given: None, hidden_after_prefix=lambda *given: None, length=8
    )
    watched = Counted(model)
    watched.hidden_step(torch.zeros(3, 8), None, None, 2)
    assert (watched.calls, watched.sequences, watched.positions) == (1, 0.75, 6)
    watched.hidden_after_prefix(torch.zeros(3, 4, 8), 5)
    assert (watched.calls, watched.sequences, watched.positions) == (2, 12.75, 6 + 15 + 36)
    assert watched.length == 8 and not hasattr(watched, "hidden")


def test_counts_are_those_of_the_engine():
    compared = ours("joint", True, num_candidates=3, steps=3)
    out = Engine(DENOISER, ENERGY).generate(
        8, config={"num_candidates": 3, "steps": 3}, seed=list(range(8))
    )
    found = work(compared)
    assert found.sequences.tolist() == out.sequences.tolist()
    assert found.nfe[0].item() == out.nfe.double().mean().item()
    assert found.energy_evaluations[0].item() == out.energy_evaluations.double().mean().item()


@pytest.mark.parametrize("canvas", [[3, 3, 3, 3], [0, 3, 3, 3]])
def test_left_to_right_and_many_candidates_have_the_exact_law(canvas):
    whole, p = LAW.enumerate(torch.tensor(canvas))
    exact = {tuple(x): q for x, q in zip(whole.tolist(), p.tolist(), strict=True)}
    many = torch.tensor(canvas).repeat(4000, 1)
    assert p_value(work(left_to_right(), many).sequences.numpy(), exact) > 1e-4
    loop = released("released", 1, 200)
    drawn = work(loop, many[:1000]).sequences.numpy()
    assert p_value(drawn, exact) > 1e-4
    plain = work(released("released", 1, 1), many).sequences.numpy()
    assert p_value(plain, exact) < 1e-6


def test_carry_over_ignores_what_is_to_the_right():
    canvas = torch.tensor([3, 0, 3, 0])
    whole, p = LAW.enumerate(canvas)
    exact = {tuple(x): q for x, q in zip(whole.tolist(), p.tolist(), strict=True)}
    many = canvas.repeat(1000, 1)
    drawn = work(with_carry_over("coAR", 200, 1), many).sequences.numpy()
    assert p_value(drawn, exact) < 1e-6
    drawn = work(ours("joint", True, num_candidates=200, steps=1), many).sequences.numpy()
    assert p_value(drawn, exact) > 1e-4


@pytest.mark.parametrize(
    "sampler, told",
    [
        (lambda d, e, c, s: c, "leave no position masked"),
        (lambda d, e, c, s: torch.zeros_like(c), "keep the known tokens"),
        (lambda d, e, c, s: c[:, :2], r"must return tokens \(8, 4\), got \(8, 2\)"),
        (lambda d, e, c, s: (None, 0, 0, 0), "got NoneType"),
    ],
)
def test_a_sampler_that_does_not_do_its_task_is_told(sampler, told):
    canvas = FREE.clone()
    canvas[:, 0] = 1
    with pytest.raises(ValueError, match=told):
        counted(sampler, DENOISER, ENERGY, canvas, range(8))


def test_all_samplers_fill_free_text_and_gaps():
    canvas = torch.tensor([3, 0, 3, 1]).repeat(8, 1)
    everything = samplers(2, (2, 4))
    names = [compared.name for compared in everything]
    assert len(set(names)) == len(names) and {"confidence", "leftmost"} <= set(names)
    assert "resolved" not in ADAPTIVE
    for compared in everything:
        for given in (FREE, canvas):
            found = work(compared, given)
            if compared.budget is not None:
                assert 0 < found.energy_evaluations[0] <= 1.5 * compared.budget


def test_gaps_have_their_size_and_known_tokens_behind():
    where = gaps(32, 0.75, 2, list(range(200))).int().numpy()
    assert (where.sum(1) == 24).all() and (where[:, -1] == 0).all()
    starts = (np.diff(np.pad(where, ((0, 0), (1, 0))), axis=1) == 1).sum(1)
    assert (starts == 2).all()
    assert where[:, 0].any() and not where[:, 0].all()  # the place varies
    assert (gaps(32, 0.75, 2, [7])[0].int().numpy() == where[7]).all()
    with pytest.raises(ValueError, match="do not fit"):
        gaps(8, 0.9, 4, [0])


def test_samplers_are_brought_by_name(monkeypatch):
    module = types.ModuleType("their_samplers")
    module.copy = lambda denoiser, energy, canvas, seeds: (canvas * 0, 1, 2, 3)
    module.number = 3
    monkeypatch.setitem(sys.modules, "their_samplers", module)
    found = work(brought("their_samplers:copy"))
    assert (found.nfe[0], found.energy_evaluations[0], found.positions[0]) == (1, 2, 3)
    for place in ("their_samplers:paste", "nowhere_at_all:copy", "their_samplers"):
        with pytest.raises(ValueError, match="module:function"):
            brought(place)
    with pytest.raises(ValueError, match="must be a function"):
        brought("their_samplers:number")


def test_exact_draws_are_at_the_floor_and_parallel_ones_are_not():
    problem = oracle_problems()[0]
    compared = [*problem.extra, ours("MDLM", steps=1), ours("one at a time", steps=None)]
    settings = [problem.setting(each) for each in compared]
    drawn = [setting.draw(range(3000)) for setting in settings]
    exact, parallel, one = (
        problem.measure([{"tokens": x} for x in d.sequences.tolist()])["tv"] for d in drawn
    )
    assert abs(exact[0]) < 4 * exact[1] and abs(one[0]) < 4 * one[1]
    assert parallel[0] > 10 * parallel[1]


def test_the_gap_is_closed_in_parts_where_there_is_one():
    problem = oracle_problems()[0]

    def shares(error):
        figures = {"MDLM": (0.3, error), "exact draws": (0.1, error), "ours": (0.15, 0.01)}
        found = [{"sampler": name, "figures": {"tv": value}} for name, value in figures.items()]
        add_shares(found, problem)
        return [each.get("closed") for each in found]

    assert shares(0.03)[:2] == [None, None]
    assert shares(0.03)[2] == pytest.approx((0.75, 0.05))
    assert shares(0.04)[2] is None


def test_the_page_has_every_task_and_goes_on(tmp_path, monkeypatch):
    oracle = oracle_problems()
    law = oracle[2].law
    engine = Engine(oracle[2].denoiser, oracle[2].energy)
    windows = law.draw(torch.full((4, 32), law.mask_id), range(4))
    pair = pair_problems(engine, windows, None, steps=2, candidates=(2,))
    tasks = [Task(problem, 4, 2) for problem in (oracle[1], oracle[3], pair[0], pair[2])]
    few = [ours("MDLM", steps=2), ours("joint K=2", True, num_candidates=2, steps=2)]
    monkeypatch.setattr("bench.samplers.run.samplers", lambda *_: [*few, left_to_right()])
    monkeypatch.setattr("bench.samplers.run.CLEAR", 0)
    asked = Asked(tmp_path / "units", tmp_path / "page", progress=False)
    page = run(asked, tasks, {"machine": "this one"})
    text = page.read_text()
    for task in tasks:
        assert f"### {task.problem.title}" in text
        assert (tmp_path / "page" / f"{task.problem.name}.png").is_file()
    results = json.loads((tmp_path / "page" / "results.json").read_text())
    assert results["whole"] and len(results["tasks"]) == 4
    for found in results["tasks"]:
        names = [each["sampler"] for each in found["samplers"]]
        assert {"MDLM", "joint K=2", "AR, left to right"} <= set(names)
        for each in found["samplers"]:
            assert each["sequences"] == 4 and found["judged_by"] in each["figures"]
            assert ("closed" in each) == (
                each["sampler"] not in ("MDLM", "exact draws", found["target"])
            )
    again = summary(pair[2], pair[2].extra, tmp_path / "units")["samplers"][0]
    assert again["figures"]["log_p"][0] == pytest.approx(0, abs=1e-5)
    monkeypatch.setattr("bench.samplers.problems.counted", None)  # nothing is drawn anew
    assert run(asked, tasks, {"machine": "this one"}).read_text() == text
