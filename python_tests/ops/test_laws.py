"""The law that candidates are drawn from: its cuts, alone and together, and its statistics."""

import itertools
import math

import pytest
import torch
from op_cases import DTYPES, P_VALUE, g_test, poisoned_rows, random_logits

from edlm_engine import arrays, head_rows, ops, reference

CUTS = [
    {"top_k": 1},
    {"top_k": 3},
    {"top_k": 40},
    {"top_k": 1000},
    {"top_k": 10**12},
    {"min_p": 0.3},
    {"min_p": 1e-4},
    {"min_p": 1.0},
    {"top_p": 0.5},
    {"top_p": 0.995},
    {"top_k": 30, "top_p": 0.8},
    {"top_k": 700, "top_p": 0.95},
    {"top_k": 5, "min_p": 0.2},
    {"top_p": 0.9, "min_p": 0.05},
    {"top_k": 20, "top_p": 0.9, "min_p": 0.1, "temperature": 0.7},
    {"top_k": 600, "top_p": 0.97, "min_p": 1e-3, "temperature": 1.9, "forbidden_id": -2},
]


def keys_for(rows, device="cpu", seed=5):
    return ops.stream_keys(seed, torch.arange(rows, device=device))


def law_of(logits, options):
    return reference.log_softmax(logits, **options)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", [1, 2, 7, 127, 129, 2049, 5003, 50258])
def test_every_cut_matches_reference(vocab, dtype, device):
    rows = 3 if vocab > 10_000 else 9
    logits, keys = random_logits(rows, vocab, dtype), keys_for(rows)
    given, given_keys = poisoned_rows(logits.to(device)), keys.to(device)
    different = 0
    for cuts in CUTS:
        options = dict(cuts)
        if "forbidden_id" in options:
            options["forbidden_id"] = vocab // 3 if vocab > 1 else -1
        want, _, _ = reference.sample_candidates(logits, keys, 6, statistics=True, **options)
        tokens, log_q, statistics = ops.sample_candidates(
            given, given_keys, 6, statistics=True, **options
        )
        tokens, log_q = tokens.cpu(), log_q.cpu()
        law = law_of(logits, options)
        exact = law.gather(1, tokens)
        assert exact.isfinite().all(), options  # all of them are kept
        assert (log_q - exact).abs().max() < 3e-6 and (log_q <= 0).all(), options
        different += int((tokens != want).sum())
        # Where top_p is reached to within rounding, one more token may be in: one of few.
        check_statistics(statistics.cpu(), law, 1e-5)
        plain = ops.sample_candidates(given, given_keys, 6, **options)
        assert torch.equal(plain[0].cpu(), tokens) and torch.equal(plain[1].cpu(), log_q)
    assert different <= 1  # a uniform within rounding of a boundary


def check_statistics(statistics, law, tolerance=2e-6):
    want = reference.law_statistics(law).double()
    assert statistics.shape == want.shape and statistics.dtype == torch.float32
    assert (statistics[:, 0] >= 0).all() and (statistics[:, 1:] <= 0).all()
    none = want.isneginf()
    assert torch.equal(statistics.isneginf(), none)
    error = (statistics - want).masked_fill(none, 0).abs()
    assert (error <= tolerance + 2e-7 * want.abs().masked_fill(none, 0)).all()


@pytest.mark.parametrize("vocab", [28, 4097, 50258])
@pytest.mark.parametrize(
    "options",
    [{"top_k": 12}, {"min_p": 0.1}, {"top_k": 300, "top_p": 0.9, "min_p": 0.01}],
    ids=["top_k", "min_p", "all"],
)
def test_frequencies(vocab, options, device):
    logits = random_logits(2, vocab)
    options = options | {"temperature": 1.3, "forbidden_id": 0}
    tokens, _ = ops.sample_candidates(logits.to(device), keys_for(2, device), 100_000, **options)
    for row in range(2):
        probs = law_of(logits[row : row + 1], options)[0].exp()
        assert g_test(tokens[row].cpu(), probs) > P_VALUE


def kept_by(logits, device, **options):
    """The tokens that 500 draws of a single small row find."""
    tokens, _ = ops.sample_candidates(
        torch.tensor([logits], device=device), keys_for(1, device), 500, **options
    )
    return set(tokens[0].tolist())


def test_ties_with_the_last_kept_token_are_kept(device):
    logits = [1.0, 3.0, 2.0, 2.0, -1.0, 2.0]
    assert kept_by(logits, device, top_k=1) == {1}
    assert kept_by(logits, device, top_k=2) == {1, 2, 3, 5}
    assert kept_by(logits, device, top_k=4) == {1, 2, 3, 5}
    assert kept_by(logits, device, top_k=5) == {0, 1, 2, 3, 5}
    assert kept_by(logits, device, min_p=1.0) == {1}
    assert kept_by([2.0, 2.0, 1.9], device, min_p=1.0) == {0, 1}
    assert kept_by([0.0, -1.0], device, min_p=math.exp(-1.00000001)) == {0, 1}
    assert kept_by([0.0, -1.0], device, min_p=math.exp(-0.99999999)) == {0}  # between two floats
    assert kept_by([0.0, -0.0, -1.0], device, top_k=1) == {0, 1}
    assert kept_by([-0.0, 0.0, -1.0], device, min_p=1.0) == {0, 1}
    assert kept_by([0.0, -0.0, -1.0, -9.0], device, top_p=0.2) == {0, 1}


def test_cuts_come_in_turn_and_renormalise(device):
    """top_p measures what top_k left, and min_p compares with the best of all."""
    logits = [math.log(x) for x in (0.4, 0.3, 0.15, 0.1, 0.05)]
    assert kept_by(logits, device, top_p=0.8) == {0, 1, 2}
    assert kept_by(logits, device, top_k=3, top_p=0.8) == {0, 1}  # 0.7 of 0.85
    assert kept_by(logits, device, top_k=2, top_p=0.5) == {0}
    assert kept_by(logits, device, min_p=0.3) == {0, 1, 2}
    assert kept_by(logits, device, min_p=0.3, top_p=0.6) == {0, 1}
    assert kept_by(logits, device, min_p=0.3, top_k=4, top_p=0.99) == {0, 1, 2}
    # The forbidden token counts for nothing: not as one of top_k, nor as the best.
    assert kept_by(logits, device, forbidden_id=0, top_k=2) == {1, 2}
    assert kept_by(logits, device, forbidden_id=0, min_p=0.6) == {1}
    # Nor does one of -inf.
    assert kept_by([*logits[:2], -math.inf, -math.inf], device, top_k=3) == {0, 1}


@pytest.mark.parametrize("temperature", [1e-30, 1e-3, 1e4, 1e30])
@pytest.mark.parametrize("cut", [{"top_k": 77}, {"min_p": 1.0}, {"min_p": 0.999, "top_k": 500}])
def test_cuts_at_extreme_temperatures(cut, temperature, device):
    logits, keys = random_logits(4, 3001), keys_for(4)
    options = cut | {"temperature": temperature}
    tokens, log_q = ops.sample_candidates(logits.to(device), keys.to(device), 300, **options)
    law = law_of(logits, options)
    exact = law.gather(1, tokens.cpu())
    assert (log_q.cpu() - exact).abs().max() < 1e-4
    if temperature > 1 and cut == {"top_k": 77}:
        assert all(len(row.unique()) == 77 for row in tokens) or len(tokens.unique()) > 70


def test_top_k_where_all_logits_are_close_and_where_they_span_everything(device):
    """No digit of the search is enough alone."""
    order = torch.randperm(6000, generator=torch.Generator().manual_seed(1)).float()
    rows = torch.stack(
        [
            1000 + order / 8192,
            order * 1e-7 - 1.0,
            torch.where(order % 2 == 0, order + 1, -order - 1) * 1e34,
            order // 40 - 60,
        ]
    )
    for k in (1, 2, 39, 41, 1000, 5999, 6000):
        tokens, _ = ops.sample_candidates(
            rows.to(device), keys_for(4, device), 4000, top_k=k, temperature=1e30
        )
        for row, drawn in zip(rows, tokens.cpu(), strict=True):
            least = row.sort(descending=True).values[k - 1]
            assert (row[drawn] >= least).all(), k
            kept = int((row >= least).sum())
            assert len(drawn.unique()) > 0.5 * min(kept, 4000) or row.abs().max() > 1e30


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shift", [-6.0, 0.0, 6.0])
def test_cuts_where_a_sample_of_the_row_misleads(shift, dtype, device):
    """Many tokens near the boundary, and other logits at the places that a search may look at."""
    different = 0
    for scale in (0.02, 0.4, 1.5):
        logits = random_logits(2, 50258, scale=scale)
        logits[:, torch.arange(50258) % 1024 < 32] += shift * scale
        logits[1, ::3] = -torch.inf
        logits, keys = logits.to(dtype), keys_for(2)
        for cuts in ({"top_p": 0.9}, {"top_p": 0.2}, {"top_k": 5000}, {"top_k": 20_000}):
            for options in (cuts, cuts | {"temperature": 0.5, "min_p": 1e-3, "forbidden_id": 7}):
                tokens, log_q = ops.sample_candidates(
                    logits.to(device), keys.to(device), 40, **options
                )
                want, _ = reference.sample_candidates(logits, keys, 40, **options)
                exact = law_of(logits, options).gather(1, tokens.cpu())
                assert (log_q.cpu() - exact).abs().max() < 1e-5, options
                different += int((tokens.cpu() != want).sum())
    assert different <= 4  # of 3840


LAWS = {
    "uniform": lambda v: torch.zeros(v),
    "one-hot": lambda v: torch.zeros(v).index_fill_(0, torch.tensor([v // 3]), 60.0),
    "nearly one-hot": lambda v: torch.zeros(v).index_fill_(0, torch.tensor([v // 3]), 24.0),
    "half": lambda v: torch.zeros(v).index_fill_(0, torch.tensor([v - 1]), math.log(v)),
    "two": lambda v: torch.full((v,), -torch.inf).index_fill_(0, torch.tensor([0, v - 1]), 3.0),
    "one": lambda v: torch.full((v,), -torch.inf).index_fill_(0, torch.tensor([v - 1]), -5.0),
    "rising": lambda v: torch.arange(v) * 30.0 / v,
    "falling": lambda v: torch.arange(v) * -30.0 / v,
    "steep": lambda v: torch.arange(v) * 0.05,
    "low start": lambda v: torch.where(torch.arange(v) < v // 2, -19.5, 0.0) + torch.arange(v) % 3,
    "low first": lambda v: torch.where(torch.arange(v) < min(2048, v // 2), -19.0, 0.37),
    "far apart": lambda v: torch.arange(v) % 7 * -50.0,
    "huge": lambda v: 3e38 * torch.ones(v),
    "offset": lambda v: 1e4 + (torch.arange(v) % 9).float(),
    "holes": lambda v: torch.where(torch.arange(v) % 5 == 0, -torch.inf, torch.arange(v) % 11),
}


@pytest.mark.parametrize("name", LAWS)
def test_statistics_of_telling_laws(name, device):
    for vocab, temperature in itertools.product((2, 129, 4100, 50258), (1.0, 0.35, 5.0)):
        logits = LAWS[name](vocab).float()[None].repeat(2, 1)
        options = {"temperature": temperature, "forbidden_id": 1 if vocab > 2 else -1}
        _, _, statistics = ops.sample_candidates(
            logits.to(device), keys_for(2, device), 1, statistics=True, **options
        )
        check_statistics(statistics.cpu(), law_of(logits, options))


@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics_of_random_laws(dtype, device):
    for scale in (0.01, 1.0, 8.0):
        logits = random_logits(8, 50258, dtype, scale=scale)
        _, _, statistics = ops.sample_candidates(
            logits.to(device), keys_for(8, device), 2, statistics=True
        )
        check_statistics(statistics.cpu(), law_of(logits, {}))


def test_statistics_of_extreme_temperatures(device):
    logits = random_logits(4, 3000)
    logits[1, 5], logits[1, 6] = 3e38, -3e38
    for temperature in (1e-30, 1e-6, 1e6, 1e30):
        _, _, statistics = ops.sample_candidates(
            logits.to(device), keys_for(4, device), 1, temperature=temperature, statistics=True
        )
        law = law_of(logits, {"temperature": temperature})
        want = reference.law_statistics(law)
        assert (statistics.cpu()[:, :2] - want[:, :2]).abs().max() < 1e-5
        assert torch.allclose(statistics.cpu()[:, 2], want[:, 2], rtol=1e-6)


def test_a_candidate_does_not_depend_on_k(device):
    logits, keys = random_logits(9, 3000).to(device), keys_for(9, device)
    options = {"top_k": 200, "top_p": 0.9, "min_p": 1e-3}
    all_tokens, all_log_q = ops.sample_candidates(logits, keys, 17, **options)
    for k in (1, 2, 16):
        tokens, log_q = ops.sample_candidates(logits, keys, k, **options)
        assert torch.equal(tokens, all_tokens[:, :k]) and torch.equal(log_q, all_log_q[:, :k])


def test_a_row_does_not_depend_on_its_batch_or_its_stride(device):
    logits, keys = random_logits(12, 5001).to(device), keys_for(12, device)
    options = {"top_k": 400, "top_p": 0.9, "statistics": True}
    whole = ops.sample_candidates(logits, keys, 3, **options)
    strided = ops.sample_candidates(poisoned_rows(logits), keys, 3, **options)
    alone = [
        ops.sample_candidates(logits[i : i + 1], keys[i : i + 1], 3, **options) for i in range(12)
    ]
    for part in range(3):
        assert torch.equal(whole[part], strided[part])
        assert torch.equal(whole[part], torch.cat([row[part] for row in alone]))


def test_the_head_op_draws_from_the_same_law(monkeypatch):
    hidden, weight = random_logits(20, 16, scale=1.0), random_logits(300, 16)
    keys = keys_for(20)
    options = {"top_k": 50, "min_p": 0.02, "temperature": 0.9, "statistics": True}
    want = ops.sample_candidates(hidden @ weight.T, keys, 4, **options)
    monkeypatch.setattr(head_rows, "HEAD_WORKSPACE_BYTES", 7 * 300 * 4)
    got = ops.head_sample_candidates(hidden, weight, keys, 4, **options)
    oracle = reference.head_sample_candidates(hidden, weight, keys, 4, **options)
    assert torch.equal(got[0], want[0]) and torch.equal(got[0], oracle[0])
    for ours, theirs in zip(got[1:], oracle[1:], strict=True):
        assert torch.allclose(ours, theirs, atol=1e-5)
    assert len(ops.head_sample_candidates(hidden, weight, keys, 4)) == 2


def test_arrays_draw_from_the_same_law():
    logits, keys = random_logits(5, 400), keys_for(5)
    options = {"top_k": 50, "top_p": 0.9, "min_p": 0.01, "statistics": True}
    want = ops.sample_candidates(logits, keys, 3, **options)
    got = arrays.sample_candidates(logits.numpy(), keys.numpy(), 3, threads=2, **options)
    for ours, theirs in zip(got, want, strict=True):
        assert torch.equal(torch.from_numpy(ours), theirs)


def test_bad_rows():
    logits = torch.zeros(3, 300)
    logits[1, 7] = torch.nan
    for options in ({"top_k": 5}, {"min_p": 0.5}, {"statistics": True}):
        with pytest.raises(RuntimeError, match="logits row 1 holds NaN"):
            ops.sample_candidates(logits, keys_for(3), 1, **options)
        with pytest.raises(RuntimeError, match="row 0 allows nothing"):
            ops.sample_candidates(torch.full((2, 300), -torch.inf), keys_for(2), 1, **options)
        with pytest.raises(RuntimeError, match="row 0 allows nothing"):
            ops.sample_candidates(torch.zeros(1, 1), keys_for(1), 1, forbidden_id=0, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"top_k": -1}, "top_k must be at least 1, or 0 for none, got -1"),
        ({"min_p": -0.1}, r"min_p must be in \[0, 1\], got -0.1"),
        ({"min_p": 1.5}, r"min_p must be in \[0, 1\], got 1.5"),
        ({"min_p": math.nan}, r"min_p must be in \[0, 1\], got nan"),
        ({"top_p": 0.0}, r"top_p must be in \(0, 1\], got 0"),
    ],
)
def test_bad_arguments(options, message):
    logits, keys = torch.zeros(2, 5), keys_for(2)
    for statistics in (False, True):
        with pytest.raises(RuntimeError, match=message):
            ops.sample_candidates(logits, keys, 1, statistics=statistics, **options)
        with pytest.raises(ValueError, match=message):
            arrays.sample_candidates(
                logits.numpy(), keys.numpy(), 1, statistics=statistics, **options
            )
    with pytest.raises(RuntimeError, match=message.split(",")[0].split(" got")[0]):
        reference.sample_candidates(logits, keys, 1, **options)


def test_no_rows(device):
    drawn = ops.sample_candidates(
        torch.empty(0, 9, device=device), keys_for(0, device), 3, top_k=2, statistics=True
    )
    assert [x.shape for x in drawn] == [(0, 3), (0, 3), (0, 3)]


def test_opcheck_and_gradient():
    for vocab, dtype in ((5, torch.float32), (300, torch.bfloat16)):
        for op in (torch.ops.edlm.sample_candidates, torch.ops.edlm.sample_candidates_statistics):
            args = (random_logits(4, vocab, dtype), keys_for(4), 2, 1, 0.9, 0.8, 3, 0.1)
            torch.library.opcheck(op.default, args)
    drawn = ops.sample_candidates(
        random_logits(3, 5).requires_grad_(), keys_for(3), 2, statistics=True
    )
    with pytest.raises(RuntimeError, match="sample_candidates has no gradient"):
        drawn[2].sum().backward()


def test_compiles_whole():
    options = {"top_k": 9, "min_p": 0.01, "statistics": True}

    @torch.compile(fullgraph=True, backend="aot_eager")
    def step(logits, keys):
        tokens, log_q, statistics = ops.sample_candidates(logits * 2, keys, 4, **options)
        return tokens + 0, log_q.sum(1), statistics[:, 1] - statistics[:, 2]

    logits, keys = random_logits(6, 50), keys_for(6)
    tokens, log_q, margin = step(logits, keys)
    want = ops.sample_candidates(logits * 2, keys, 4, **options)
    assert torch.equal(tokens, want[0]) and torch.allclose(log_q, want[1].sum(1))
    assert torch.equal(margin, want[2][:, 1] - want[2][:, 2])
