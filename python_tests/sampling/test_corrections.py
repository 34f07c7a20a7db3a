"""Each correction against enumeration of the law that its docstring states, or by hand."""

import math
from itertools import combinations, product

import numpy as np
import pytest
import torch
from enumeration import TinyDenoiser, ancestral, completions, p_value, reveal
from graph_models import LENGTH as GRAPH_LENGTH
from graph_models import denoiser as graph_denoiser
from graph_models import scorer
from tiny_models import HeadDenoiser, TableAR, table_denoiser

from edlm_engine import ARResidualEnergy, Engine, GenerationConfig, LogLinearSchedule, reference
from edlm_engine.sampling.plan import plan_reveals
from edlm_engine.sampling.purposes import CANDIDATES, FINAL, RESAMPLE

pytestmark = pytest.mark.usefixtures("single_thread")
MASK = 1
SCHEDULE = LogLinearSchedule(eps=0.2)
ACCEPT = 1e-3


def sigma(t):
    return float(SCHEDULE.sigma(torch.tensor(t, dtype=torch.float64)))


def sample(engine, config, canvas=None, calls=6, batch=5000):
    drawn = [
        engine.generate(
            batch,
            config=config,
            seed=seed,
            canvas=None if canvas is None else canvas.repeat(batch, 1),
        ).sequences
        for seed in range(calls)
    ]
    return torch.cat(drawn).numpy()


# local


def local_law(tiny, start, times, energy, k, rests, window):
    """Whole sequences: every set revealed, every rest, every tuple of revealed parts."""
    states = {tuple(start): 1.0}
    for now, then in zip(times, [*times[1:], 0.0], strict=True):
        after, stay = {}, then / now
        used = window[0] <= now <= window[1]
        for xt, mass in states.items():
            masked = [i for i, v in enumerate(xt) if v == MASK]
            probs = tiny.probs(xt, sigma(now))
            for size in range(len(masked) + 1):
                for places in combinations(masked, size):
                    chance = mass * (1 - stay) ** size * stay ** (len(masked) - size)
                    law = step_law(
                        tiny, xt, probs, masked, places, energy if used else None, k, rests, now
                    )
                    for tokens, p in law.items():
                        xs = reveal(xt, tokens, places)
                        after[xs] = after.get(xs, 0.0) + chance * p
        states = {xt: mass for xt, mass in after.items() if mass > 0}
    return states


def step_law(tiny, xt, probs, masked, places, energy, k, rests, t):
    others = [i for i in masked if i not in places]
    part = list(product(tiny.tokens, repeat=len(places)))
    part_p = [math.prod(probs[i, v] for i, v in zip(places, vs, strict=True)) for vs in part]
    if energy is None or not places:
        result = {}
        for vs, p in zip(part, part_p, strict=True):
            x0 = list(xt)
            for i, v in zip(places, vs, strict=True):
                x0[i] = v
            result[tuple(x0)] = result.get(tuple(x0), 0.0) + p
        return result
    rest = list(product(tiny.tokens, repeat=len(others)))
    rest_p = [math.prod(probs[i, v] for i, v in zip(others, vs, strict=True)) for vs in rest]
    weight, whole = np.zeros((len(part), len(rest))), {}
    for a, vs in enumerate(part):
        for b, us in enumerate(rest):
            x0 = list(xt)
            for i, v in (*zip(places, vs, strict=True), *zip(others, us, strict=True)):
                x0[i] = v
            log_q = np.array(
                [math.log(probs[i, x0[i]]) if i in masked else 0.0 for i in range(len(xt))]
            )
            weight[a, b] = math.exp(-energy(tuple(x0), xt, log_q, t))
            whole[a, b] = tuple(x0)
    result = {}
    for shared in product(range(len(rest)), repeat=rests):
        p_rest = math.prod(rest_p[b] for b in shared)
        for parts in product(range(len(part)), repeat=k):
            p = p_rest * math.prod(part_p[a] for a in parts)
            w = np.array([weight[a, shared[j % rests]] for j, a in enumerate(parts)])
            for j, share in enumerate(w / w.sum()):
                x0 = whole[parts[j], shared[j % rests]]
                result[x0] = result.get(x0, 0.0) + p * share
    return result


@pytest.mark.parametrize(
    ("k", "rests", "window", "carry_over", "start"),
    [
        (2, 1, (0.0, 1.0), False, (MASK, MASK, MASK)),
        (3, 2, (0.0, 1.0), False, (MASK, MASK, MASK)),
        (2, 2, (0.3, 1.0), True, (MASK, MASK, MASK)),
        (3, 1, (0.0, 0.7), True, (MASK, 2, MASK)),
    ],
)
def test_local_against_enumeration(k, rests, window, carry_over, start):
    tiny, ar = TinyDenoiser(vocab=3, length=3, mask_id=MASK, tilt=0.3), TableAR(3, 3)
    config = GenerationConfig(
        steps=2, num_candidates=k, correction="local", shared_rests=rests, window=window
    )
    engine = Engine(table_denoiser(tiny), ARResidualEnergy(ar, carry_over), schedule=SCHEDULE)
    times = SCHEDULE.times(2).tolist()
    truth = local_law(tiny, start, times, ar.residual(MASK, carry_over), k, rests, window)
    canvas = torch.tensor([start])
    assert p_value(sample(engine, config, canvas), truth) > ACCEPT


def test_local_is_not_the_paper():
    """The test above can tell them apart."""
    tiny, ar = TinyDenoiser(vocab=3, length=3, mask_id=MASK, tilt=0.3), TableAR(3, 3)
    start, times = (MASK,) * 3, SCHEDULE.times(2).tolist()
    local = local_law(tiny, start, times, ar.residual(MASK), 3, 1, (0.0, 1.0))
    joint = ancestral(tiny, start, times, sigma, ar.residual(MASK), 3)
    assert sum(abs(local[x] - p) for x, p in joint.items()) / 2 > 0.01


def test_all_rests_apart_is_the_paper():
    tiny, ar = TinyDenoiser(vocab=3, length=4, mask_id=MASK, tilt=0.3), TableAR(3, 4)
    engine = Engine(HeadDenoiser(tiny), ARResidualEnergy(ar), schedule=SCHEDULE)
    joint = engine.generate(50, config={"steps": 4, "num_candidates": 3})
    local = {"steps": 4, "num_candidates": 3, "correction": "local", "shared_rests": 3}
    out = engine.generate(50, config=local)
    assert torch.equal(out.sequences, joint.sequences) and torch.equal(
        out.ess.nan_to_num(), joint.ess.nan_to_num()
    )


# As many candidates as it takes


@pytest.mark.parametrize("target", [1.0, 1.7, 100.0])
def test_enough_candidates_by_hand(target):
    """The choice is among the first 2, 4, ... candidates, whose energies are asked for alone."""
    tiny, ar = TinyDenoiser(vocab=4, length=4, mask_id=MASK), TableAR(4, 4)
    asked = []
    inner = ARResidualEnergy(ar)

    def energy(x0, xt, log_q, t):
        asked.append(x0.shape[:2])
        return inner(x0, xt, log_q, t)

    engine = Engine(table_denoiser(tiny), energy, schedule=SCHEDULE)
    config = GenerationConfig(steps=1, num_candidates=6, ess_target=target)
    out = engine.generate(40, config=config, seed=range(40))
    assert int(out.energy_evaluations.sum()) == sum(b * k for b, k in asked)
    logits = torch.from_numpy(tiny.table[tiny.index((MASK,) * 4)])
    counts = set()
    for b in range(40):
        laws = []
        for p in range(4):
            keys = reference.stream_keys(torch.tensor([b]), CANDIDATES, 1, p)
            laws.append(reference.sample_candidates(logits[p][None], keys, 6, forbidden_id=MASK))
        x0 = torch.cat([tokens for tokens, _ in laws]).T
        log_q = torch.cat([q for _, q in laws]).T
        log_w = [float(ar.log_probs(x0[k].tolist()).sum() - log_q[k].sum()) for k in range(6)]
        for done in (2, 4, 6):
            w = np.exp(np.array(log_w[:done]))
            if w.sum() ** 2 / (w**2).sum() >= target or done == 6:
                break
        counts.add(done)
        keys = reference.stream_keys(torch.tensor([b]), RESAMPLE, 1)
        padded = torch.tensor([log_w[:done] + [-math.inf] * (6 - done)])
        choice = int(reference.resample(padded, keys)[0])
        revealed = plan_reveals(torch.tensor([b]), torch.ones(1, 4).bool(), SCHEDULE, 1)
        first = revealed.revealed_in[0] == 1
        assert (out.sequences[b].numpy() == x0[choice].numpy())[first].all()
        if first.any():
            assert abs(out.log_z[b, 0] - math.log(w.mean())) < 1e-4
    assert counts == {1.0: {2}, 1.7: {2, 4, 6}, 100.0: {6}}[target]


# speculative


def coar_law(ar, xt, places):
    """Left to right over the masked positions up to the last revealed, known tokens kept."""
    states, last = {tuple(xt): 1.0}, max(places)
    for p in range(last + 1):
        if xt[p] != MASK:
            continue
        after = {}
        for x, mass in states.items():
            tokens = [v for v in range(ar.vocab_size) if v not in (MASK, ar.forbidden_id)]
            law = np.exp([ar.log_probs(reveal(x, (v,) * len(x), (p,)))[p] for v in tokens])
            for v, q in zip(tokens, law / law.sum(), strict=True):
                after[reveal(x, (v,) * len(x), (p,))] = mass * q
        states = after
    result = {}
    for x, mass in states.items():
        kept = tuple(x[i] if i in places else v for i, v in enumerate(xt))
        result[kept] = result.get(kept, 0.0) + mass
    return result


def speculative_law(tiny, ar, start, times):
    states = {tuple(start): 1.0}
    for now, then in zip(times, [*times[1:], 0.0], strict=True):
        after, stay = {}, then / now
        for xt, mass in states.items():
            masked = [i for i, v in enumerate(xt) if v == MASK]
            for size in range(len(masked) + 1):
                for places in combinations(masked, size):
                    chance = mass * (1 - stay) ** size * stay ** (len(masked) - size)
                    for xs, p in (coar_law(ar, xt, places) if places else {xt: 1.0}).items():
                        after[xs] = after.get(xs, 0.0) + chance * p
        states = after
    return states


class Drafts(TinyDenoiser):
    """Drafts near the AR model's law, unrelated, or nearly always one wrong token."""

    def __init__(self, kind, length, ar):
        super().__init__(vocab=4, length=length, mask_id=MASK, tilt=0.3)
        if kind == "good":
            self.table *= 0.1
            self.table += ar.logits[:, 0].astype(np.float32) + 0.0
        elif kind == "wrong":
            self.table *= 0.1
            self.table[..., 2] += 6


@pytest.mark.parametrize("head", [False, True])
@pytest.mark.parametrize("start", [(MASK,) * 3, (MASK, 0, MASK)])
@pytest.mark.parametrize("kind", ["good", "unrelated", "wrong"])
def test_speculative_is_coar(kind, start, head):
    ar = TableAR(4, 3)
    tiny = Drafts(kind, 3, ar)
    denoiser = HeadDenoiser(tiny) if head else table_denoiser(tiny)
    engine = Engine(denoiser, ARResidualEnergy(ar), schedule=SCHEDULE)
    config = GenerationConfig(steps=2, num_candidates=1, correction="speculative")
    truth = speculative_law(tiny, ar, start, SCHEDULE.times(2).tolist())
    drawn = sample(engine, config, torch.tensor([start]), calls=4)
    assert p_value(drawn, truth) > ACCEPT


def test_speculative_from_the_left_is_the_ar_model():
    ar = TableAR(4, 4, forbidden_id=3)
    engine = Engine(table_denoiser(Drafts("unrelated", 4, ar)), ARResidualEnergy(ar))
    config = GenerationConfig(steps=1, order="leftmost", correction="speculative", temperature=1.7)
    truth = coar_law(ar, (MASK,) * 4, (0, 1, 2, 3))
    assert p_value(sample(engine, config), truth) > ACCEPT
    out = engine.generate(200, config=config)
    assert out.nfe.unique().tolist() == [1]
    calls = out.energy_evaluations  # 1 + refusals, the last of which needs no other call
    assert calls.min() == 1 and 1 < calls.float().mean() < 4 and calls.max() <= 4


def test_one_call_a_step_reveals_what_it_settles():
    """In the whole window the AR model's law; the denoiser drafts anew from what is settled."""
    ar = TableAR(4, 4, forbidden_id=3)
    engine = Engine(table_denoiser(Drafts("unrelated", 4, ar)), ARResidualEnergy(ar))
    config = GenerationConfig(steps=9, order="resolved", correction="speculative")
    assert p_value(sample(engine, config), coar_law(ar, (MASK,) * 4, (0, 1, 2, 3))) > ACCEPT
    out = engine.generate(300, config=config)
    assert torch.equal(out.nfe, out.energy_evaluations) and 1 < out.nfe.float().mean() < 4
    half = GenerationConfig(steps=6, order="resolved", correction="speculative", window=0.3)
    out = engine.generate(300, config=half)  # one call, which settles one token at least
    assert out.energy_evaluations.max() <= 2 and (out.nfe <= 6).all()
    assert (out.nfe > out.energy_evaluations).any()


def test_speculative_keeps_what_the_model_cannot_score():
    ar = TableAR(4, 3, first_position=1)
    tiny = Drafts("unrelated", 3, ar)
    engine = Engine(table_denoiser(tiny), ARResidualEnergy(ar), schedule=SCHEDULE)
    config = GenerationConfig(steps=1, order="leftmost", correction="speculative")
    drawn = sample(engine, config)
    first = tiny.probs((MASK,) * 3, sigma(1.0))[0]
    truth = {(v,): float(first[v]) for v in tiny.tokens}
    assert p_value(drawn[:, :1], truth) > ACCEPT
    kept = drawn[drawn[:, 0] == 0]
    assert p_value(kept, coar_law(ar, (0, MASK, MASK), (1, 2))) > ACCEPT


@pytest.mark.parametrize("options", [{"steps": 1, "order": "leftmost"}, {"steps": 3}])
def test_speculative_with_a_cache_is_the_same(monkeypatch, options):
    """The AR model's cache saves what it has read before, and changes no token."""
    torch.manual_seed(0)
    ar = scorer()
    engine = Engine(graph_denoiser(), ARResidualEnergy(ar), schedule=SCHEDULE)
    config = GenerationConfig(correction="speculative", batch_invariant=True, **options)
    canvas = torch.full((4, GRAPH_LENGTH), engine.denoiser.mask_id)
    canvas[1, 3:9], canvas[2, 0], canvas[3, -1] = 2, 3, 4
    steps = []
    hidden_step = type(ar).hidden_step

    def counted(self, tokens, cache, start, count):
        steps.append(count)
        return hidden_step(self, tokens, cache, start, count)

    monkeypatch.setattr(type(ar), "hidden_step", counted)
    cached = engine.generate(4, config=config, seed=range(4), canvas=canvas)
    assert steps and max(steps) < GRAPH_LENGTH
    monkeypatch.delattr(type(ar), "start_cache")
    whole = engine.generate(4, config=config, seed=range(4), canvas=canvas)
    assert torch.equal(cached.sequences, whole.sequences)
    assert (cached.energy_evaluations >= whole.energy_evaluations).all()


@pytest.mark.parametrize("with_model", [False, True])
def test_speculative_needs_an_ar_model(with_model):
    def energy(x0, xt, log_q, t):
        return log_q

    if with_model:
        energy.model = object()  # as an NCE energy has
    engine = Engine(table_denoiser(TinyDenoiser(4, 3, MASK)), energy)
    with pytest.raises(ValueError, match="needs an energy with an autoregressive model"):
        engine.generate(config={"correction": "speculative"})


# smc


def smc_by_hand(tiny, ar, start, seed, config, plan, b):
    """One sequence in numpy: particles, log-weights, and log Z after each energy step."""
    count, length = config.num_candidates, tiny.length
    xs = [list(start) for _ in range(count)]
    past, twist, log_w = np.zeros(count), np.zeros(count), np.zeros(count)
    log_z, found = 0.0, []
    key = torch.tensor([seed])
    for j in range(plan.nfe[b]):
        number, t = int(plan.numbers[b, j]), plan.times[b, j]
        masked = [p for p in range(length) if plan.revealed_in[b, p] >= number]
        now = [p for p in range(length) if plan.revealed_in[b, p] == number]
        use = bool(plan.uses_energy[b, j])
        own, after, new = np.zeros(count), past.copy(), []
        for i in range(count):
            logits = torch.from_numpy(tiny.table[tiny.index(xs[i])]) + torch.from_numpy(
                tiny.tilt
            ) * np.float32(sigma(t))
            x0, log_q = list(xs[i]), np.zeros(length)
            for p in masked if use else now:
                draw = reference.stream_keys(key, CANDIDATES, number, p)
                draw = reference.stream_keys(draw, i)
                token, q = reference.sample_candidates(logits[p][None], draw, 1, forbidden_id=MASK)
                x0[p], log_q[p] = int(token), float(q)
            after[i] += log_q[now].sum()
            if use:
                own[i] = ar.log_probs(x0).sum() - log_q.sum() - past[i]
            new.append([x0[p] if p in now else v for p, v in enumerate(xs[i])])
        own /= config.energy_temperature
        xs, past_now = new, after
        if use:
            log_w = log_w + own - twist
            twist = own
            w = np.exp(log_w - log_w.max())
            ess = w.sum() ** 2 / (w**2).sum()
            log_mean = math.log(w.mean()) + log_w.max()
            found.append((ess, log_z + log_mean))
            if ess < config.ess_threshold * count:
                u = float(reference.uniform(reference.stream_keys(key, RESAMPLE, number)))
                sums = np.cumsum(w) / w.sum()
                index = [
                    int(np.searchsorted(sums, (i + u) / count, side="right")) for i in range(count)
                ]
                xs = [list(xs[i]) for i in index]
                past_now, twist = past_now[index], twist[index]
                log_w, log_z = np.zeros(count), log_z + log_mean
        past = past_now
    choice = int(
        reference.resample(
            torch.from_numpy(log_w)[None].float(), reference.stream_keys(key, FINAL)
        )[0]
    )
    return xs, log_w, found, xs[choice]


@pytest.mark.parametrize("threshold", [0.0, 0.6, 1.0])
@pytest.mark.parametrize(("steps", "window"), [(3, 1.0), (None, 1.0), (4, 0.6)])
def test_smc_by_hand(steps, window, threshold):
    tiny, ar = TinyDenoiser(vocab=4, length=4, mask_id=MASK, tilt=0.3), TableAR(4, 4)
    config = GenerationConfig(
        steps=steps,
        num_candidates=4,
        correction="smc",
        window=window,
        ess_threshold=threshold,
        energy_temperature=1.3,
    )
    engine = Engine(table_denoiser(tiny), ARResidualEnergy(ar), schedule=SCHEDULE)
    seeds = list(range(12))
    canvas = torch.tensor([[MASK] * 4, [2, MASK, MASK, 0]] * 6)
    out = engine.generate(12, config=config, seed=seeds, canvas=canvas)
    plan = plan_reveals(torch.tensor(seeds), canvas == MASK, SCHEDULE, steps, config.energy_times)
    for b in seeds:
        xs, log_w, found, chosen = smc_by_hand(tiny, ar, canvas[b].tolist(), b, config, plan, b)
        assert out.particles[b].tolist() == xs and out.sequences[b].tolist() == chosen
        np.testing.assert_allclose(out.log_weights[b], log_w, atol=1e-4)
        n = len(found)
        np.testing.assert_allclose(out.ess[b, :n], [ess for ess, _ in found], rtol=1e-4)
        np.testing.assert_allclose(out.log_z[b, :n], [z for _, z in found], atol=1e-4)
    assert out.nfe.tolist() == (plan.nfe * 4).tolist()
    assert out.energy_evaluations.tolist() == (plan.energy_steps * 4).tolist()


@pytest.mark.parametrize("residual", [True, False])
def test_smc_is_properly_weighted(residual):
    """E[Z of the sample, where it is x] is the target at x: log Z without bias, in any plan."""
    tiny, ar = TinyDenoiser(vocab=3, length=3, mask_id=MASK, tilt=0.3), TableAR(3, 3)

    def reward(x0, xt, log_q, t):
        return 1.5 * (x0[:, :, 0] == x0[:, :, 2]).float() - 0.5 * (x0[:, :, 1] == 2).float()

    energy = ARResidualEnergy(ar) if residual else reward
    engine = Engine(table_denoiser(tiny), energy, schedule=SCHEDULE)
    config = GenerationConfig(steps=3, num_candidates=3, correction="smc", ess_threshold=0.9)
    start = (MASK,) * 3
    plain = ancestral(tiny, start, SCHEDULE.times(3).tolist(), sigma)
    if residual:
        target = {x: math.exp(ar.log_probs(x).sum()) for x in completions(tiny, start)}
    else:
        target = {
            x: p * math.exp(-1.5 * (x[0] == x[2]) + 0.5 * (x[1] == 2)) for x, p in plain.items()
        }
    out = engine.generate(20_000, config=config)
    last = out.ess.isfinite().sum(dim=1) - 1
    z = out.log_z.gather(1, last[:, None])[:, 0].double().exp()
    share = out.log_weights.softmax(dim=1)
    for x, wanted in target.items():
        found = z * (share * (out.particles == torch.tensor(x)).all(dim=2)).sum(dim=1)
        error = float(found.std()) / math.sqrt(len(found))
        assert abs(float(found.mean()) - wanted) < 4.5 * error, (x, float(found.mean()), wanted)
        chosen = z * (out.sequences == torch.tensor(x)).all(dim=1)
        error = float(chosen.std()) / math.sqrt(len(chosen))
        assert abs(float(chosen.mean()) - wanted) < 4.5 * error


def test_more_particles_come_nearer():
    tiny, ar = TinyDenoiser(vocab=3, length=3, mask_id=MASK, tilt=0.3), TableAR(3, 3)
    engine = Engine(table_denoiser(tiny), ARResidualEnergy(ar), schedule=SCHEDULE)
    target = {x: math.exp(ar.log_probs(x).sum()) for x in completions(tiny, (MASK,) * 3)}
    target = {x: p / sum(target.values()) for x, p in target.items()}

    def distance(**options):
        config = GenerationConfig(steps=3, **options)
        drawn = [tuple(x) for x in engine.generate(3_000, config=config).sequences.tolist()]
        return sum(abs(drawn.count(x) / len(drawn) - p) for x, p in target.items()) / 2

    few, some, many = (distance(num_candidates=k, correction="smc") for k in (2, 16, 128))
    assert few > 0.3 and some < few / 2 and many < some / 2


@pytest.mark.parametrize("correction", ["smc", "gibbs"])
def test_carry_over_is_about_what_was_free(correction):
    """coAR: the target has the AR factors of the free positions alone."""
    tiny, ar = TinyDenoiser(vocab=3, length=3, mask_id=MASK, tilt=0.3), TableAR(3, 3)
    engine = Engine(table_denoiser(tiny), ARResidualEnergy(ar, carry_over=True), schedule=SCHEDULE)
    start = (MASK, 0, MASK)
    free = np.array([True, False, True])
    target = {x: math.exp(ar.log_probs(x)[free].sum()) for x in completions(tiny, start)}
    config = GenerationConfig(
        steps=3, num_candidates=3, correction=correction, ess_threshold=0.9, sweeps=50
    )
    batch = 1_500
    out = engine.generate(batch, config=config, canvas=torch.tensor([start]).repeat(batch, 1))
    if correction == "smc":
        last = out.ess.isfinite().sum(dim=1) - 1
        z = out.log_z.gather(1, last[:, None])[:, 0].double().exp()
        for x, wanted in target.items():
            found = z * (out.sequences == torch.tensor(x)).all(dim=1)
            assert abs(found.mean() - wanted) < 4.5 * found.std() / math.sqrt(len(found))
    else:
        total = sum(target.values())
        assert p_value(out.sequences.numpy(), {x: p / total for x, p in target.items()}) > ACCEPT


# gibbs


@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_gibbs_sweeps_lead_to_the_target(threshold):
    tiny, ar = TinyDenoiser(vocab=3, length=3, mask_id=MASK, tilt=0.3), TableAR(3, 3)
    engine = Engine(table_denoiser(tiny), ARResidualEnergy(ar), schedule=SCHEDULE)
    target = {x: math.exp(ar.log_probs(x).sum()) for x in completions(tiny, (MASK,) * 3)}
    target = {x: p / sum(target.values()) for x, p in target.items()}

    def drawn(sweeps):
        config = GenerationConfig(
            steps=2,
            num_candidates=4,
            correction="gibbs",
            sweeps=sweeps,
            ess_threshold=threshold,
        )
        return engine.generate(1_500, config=config)

    few, many = drawn(1), drawn(40)
    assert p_value(few.sequences.numpy(), target) < 1e-6
    assert p_value(many.sequences.numpy(), target) > ACCEPT
    assert torch.equal(many.nfe // 41, few.nfe // 2) and many.particles.shape == (1_500, 4, 3)


def test_gibbs_begins_as_smc():
    tiny, ar = TinyDenoiser(vocab=4, length=4, mask_id=MASK, tilt=0.3), TableAR(4, 4)
    engine = Engine(table_denoiser(tiny), ARResidualEnergy(ar), schedule=SCHEDULE)
    options = {"steps": 4, "num_candidates": 3, "window": 0.7}
    smc = engine.generate(9, config={**options, "correction": "smc"}, seed=range(9))
    out = engine.generate(9, config={**options, "correction": "gibbs"}, seed=range(9))
    for b in range(9):
        n = int(smc.ess[b].isfinite().sum())
        assert torch.equal(out.ess[b, :n], smc.ess[b, :n])
        assert int(out.ess[b].isfinite().sum()) == 2 * n and out.nfe[b] == 2 * smc.nfe[b]


# All of them


@pytest.mark.parametrize(
    "options",
    [
        {"correction": "local", "shared_rests": 2},
        {"correction": "local", "order": "leftmost", "block_length": 2},
        {"correction": "smc", "remask": 0.4},
        {"correction": "smc", "guidance": 0.5, "top_p": 0.9},
        {"ess_target": 1.8},
        {"correction": "gibbs", "sweeps": 2},
        {"correction": "speculative"},
        {"correction": "speculative", "order": "leftmost", "block_length": 2},
        {"correction": "speculative", "order": "resolved"},
    ],
)
def test_alone_and_in_a_session(options):
    tiny, ar = TinyDenoiser(vocab=4, length=5, mask_id=MASK, tilt=0.3), TableAR(4, 5)
    engine = Engine(table_denoiser(tiny), ARResidualEnergy(ar), schedule=SCHEDULE)
    config = GenerationConfig(steps=5, num_candidates=4, window=0.8, **options)
    canvas = torch.tensor([[MASK] * 5, [2, MASK, MASK, 0, MASK]] * 3)
    whole = engine.generate(6, config=config, seed=range(6), canvas=canvas)
    fixed = canvas != MASK
    assert torch.equal(whole.sequences[fixed], canvas[fixed]) and (whole.sequences != MASK).all()
    session = engine.session()
    for b in range(6):
        session.add({"config": config, "seed": [b], "canvas": canvas[b : b + 1]})
        session.step()
    while session.step():
        pass
    for b, (_, generation, error) in enumerate(session.finished()):
        assert error is None
        assert torch.equal(generation.sequences[0], whole.sequences[b])
        assert generation.energy_evaluations[0] == whole.energy_evaluations[b]
        n = int(generation.ess[0].isfinite().sum())
        assert torch.equal(generation.ess[0, :n], whole.ess[b, :n])


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"correction": "magic"}, "correction must be one of joint, local"),
        ({"correction": "local", "order": "entropy"}, "order must be one of ancestral, leftmost"),
        ({"shared_rests": 0}, "shared_rests must be >= 1"),
        ({"ess_threshold": 1.5}, "ess_threshold must be in"),
        ({"ess_target": 0.5}, "ess_target must be >= 1"),
        ({"order": "resolved"}, "order must be another one with correction 'joint'"),
        ({"correction": "gibbs", "min_p": 0.1}, "min_p must be 0 with correction 'gibbs'"),
        ({"sweeps": 0}, "sweeps must be >= 1"),
        ({"correction": "smc", "record": True}, "record must be off"),
        ({"correction": "speculative", "top_p": 0.9}, "top_p must be 1 with correction"),
        ({"correction": "smc", "ess_target": 2.0}, "ess_target must be None"),
    ],
)
def test_bad_fields(fields, message):
    with pytest.raises(ValueError, match=message):
        GenerationConfig(**fields)
