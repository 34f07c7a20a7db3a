import pytest
import torch
from op_cases import DTYPES, P_VALUE, VOCABS, g_test, poisoned_rows, random_logits
from scipy import stats

from edlm_engine import ops, reference


def keys_for(rows, device="cpu", seed=5):
    return ops.stream_keys(seed, torch.arange(rows, device=device))


def pairs(rows, vocab, dtype=torch.float32, vocab_q=None):
    """Logits of p and q, which are near in every second row."""
    p, q = random_logits(rows, vocab, dtype), random_logits(rows, vocab_q or vocab, dtype, seed=7)
    if vocab_q is None:
        q[::2] = p[::2] + q[::2] / 10
    return p, q


def equal(got, want):
    return all(torch.equal(g, w) for g, w in zip(got, want, strict=True))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("vocab", VOCABS)
@pytest.mark.parametrize("options", [{}, {"temperature_p": 0.7, "temperature_q": 1.3}])
def test_matches_reference(vocab, dtype, options, device):
    p, q = pairs(60, vocab, dtype)
    keys = keys_for(60)
    if vocab > 2:
        options = options | {"forbidden_p": vocab // 3, "forbidden_q": vocab - 1}
        p[:, vocab // 3], q[:, vocab - 1] = torch.nan, torch.inf
    # Half of the drafts as q has them, half of them anything.
    draft, _ = ops.sample_candidates(
        q, keys, 1, forbidden_id=options.get("forbidden_q", -1), temperature=1.3
    )
    draft = torch.where(keys % 2 == 0, draft[:, 0], keys % vocab)
    want, want_accepted, want_log_p = reference.residual_draw(p, q, draft, keys, **options)
    on_device = (poisoned_rows(p.to(device)), q.to(device), draft.to(device), keys.to(device))
    token, accepted, log_p = (x.cpu() for x in ops.residual_draw(*on_device, **options))
    # A uniform within rounding of a boundary (one in ~10^6) may fall to its other side.
    same = token == want
    assert (~same).sum() <= 1 and (accepted != want_accepted).sum() <= 1
    assert token.dtype == torch.int64 and accepted.dtype == torch.bool
    if vocab >= 28:
        assert 5 < accepted.sum() < 55
    assert (log_p - want_log_p)[same].abs().max() <= 4e-6 and (log_p <= 0).all()


@pytest.mark.parametrize(("vocab", "vocab_q"), [(300, 301), (301, 300), (40, 5000), (5000, 40)])
def test_vocabularies_of_two_sizes(vocab, vocab_q, device):
    p, q = pairs(400, vocab, vocab_q=vocab_q)
    p[:, :30] += 8
    q[:, :30] += 8
    keys, options = keys_for(400), {"forbidden_p": 3, "forbidden_q": vocab_q - 1}
    draft = ops.sample_candidates(q, keys, 1, forbidden_id=vocab_q - 1)[0][:, 0]
    want = reference.residual_draw(p, q, draft, keys, **options)
    got = ops.residual_draw(*(x.to(device) for x in (p, q, draft, keys)), **options)
    assert (got[0].cpu() != want[0]).sum() <= 1 and (got[1].cpu() != want[1]).sum() <= 1
    assert (got[0] < vocab).all() and 0 < got[1].sum() < 400


def near(p):
    return p + random_logits(1, p.shape[1], scale=0.3, seed=3)


def unrelated(p):
    return random_logits(1, p.shape[1], seed=3)


def one_hot(p):
    """On a token that p hardly has, and no other."""
    q = torch.full_like(p, -torch.inf)
    q[0, p.argmin()] = 0
    return q


@pytest.mark.parametrize("vocab", [5, 300, 4099])
@pytest.mark.parametrize("draft_law", [near, unrelated, one_hot])
def test_tokens_follow_p_whatever_q_is(vocab, draft_law, device):
    """The draft is drawn by the same key: the op's own words are others."""
    rows = 150_000
    p = random_logits(1, vocab)
    q = draft_law(p)
    law = reference.log_softmax(p, temperature=0.8, forbidden_id=1)[0].exp()
    common = torch.minimum(law, reference.log_softmax(q, temperature=1.2)[0].exp()).sum()
    p, q = (x.to(device).expand(rows, -1) for x in (p, q))
    keys = keys_for(rows, device)
    draft, _ = ops.sample_candidates(q, keys, 1, temperature=1.2)
    options = {"temperature_p": 0.8, "temperature_q": 1.2, "forbidden_p": 1}
    token, accepted, _ = ops.residual_draw(p, q, draft[:, 0], keys, **options)
    assert g_test(token.cpu(), law) > P_VALUE
    assert stats.binomtest(int(accepted.sum()), rows, float(common)).pvalue > P_VALUE
    assert common < 0.97 and g_test(draft[:, 0].cpu(), law + 1e-9) < 1e-6  # that is another law


@pytest.mark.parametrize("m", [0.3, 0.005])
def test_a_refused_draft_is_redrawn_from_the_residual(m, device):
    """A draft that p has not is always refused. The residual holds `m`, and at the small one five
    of six rows find no token of it in 32 tries and are read again."""
    rows, vocab = 30_000, 5003
    p = random_logits(1, vocab, scale=2.0)
    draft, gained = 77, torch.arange(2500, vocab)
    p[0, draft] = -torch.inf
    law = reference.log_softmax(p)[0].exp()
    # q moves the share m of p from the second half to the draft.
    q = law.clone()
    q[gained] *= 1 - m / law[gained].sum()
    q[draft] = m
    q = q.log().float()[None]
    # Also where the rounding of these logits left a little.
    residual = (law - reference.log_softmax(q)[0].exp()).clamp(min=0)
    assert abs(residual.sum() / m - 1) < 1e-3
    p, q = (x.to(device).expand(rows, -1) for x in (p, q))
    drafts = torch.full((rows,), draft, device=device)
    token, accepted, _ = ops.residual_draw(p, q, drafts, keys_for(rows, device))
    assert not accepted.any()
    assert g_test(token.cpu(), residual / residual.sum() + 1e-12 * law) > P_VALUE


@pytest.mark.parametrize("lead", [-1.0, 0.5, 2.0])
def test_a_draft_is_taken_with_min_1_p_over_q(lead, device):
    rows = 100_000
    p, q = random_logits(1, 300), random_logits(1, 300, seed=3)
    draft = 11
    q[0, draft] = p[0, draft] + lead
    ratio = float((reference.log_softmax(p) - reference.log_softmax(q))[0, draft].exp())
    drafts = torch.full((rows,), draft, device=device)
    p, q = (x.to(device).expand(rows, -1) for x in (p, q))
    token, accepted, log_p = ops.residual_draw(p, q, drafts, keys_for(rows, device))
    taken = int(accepted.sum())
    if ratio >= 1:
        assert taken == rows
    else:
        assert stats.binomtest(taken, rows, ratio).pvalue > P_VALUE
    assert (token[accepted] == draft).all() and (token[~accepted] != draft).all()
    scores = ops.token_log_probs(p, token)
    assert (scores - log_p).abs().max() <= 1e-6


@pytest.mark.parametrize("vocab", [6, 4099])
def test_where_p_is_q_every_draft_is_taken(vocab, device):
    p = random_logits(1, vocab).to(device).expand(20_000, -1)
    draft = torch.arange(20_000, device=device) % vocab
    token, accepted, _ = ops.residual_draw(p, p, draft, keys_for(20_000, device))
    assert accepted.all() and torch.equal(token, draft)


@pytest.mark.parametrize("vocab", [6, 4099])
def test_where_p_is_q_an_impossible_draft_gives_a_token_of_p(vocab, device):
    """It is refused, and no residual is left to draw from."""
    p = random_logits(1, vocab)
    p[0, 3] = -torch.inf
    law = reference.log_softmax(p)[0].exp()
    p = p.to(device).expand(20_000, -1)
    token, accepted, log_p = ops.residual_draw(
        p, p, torch.full((20_000,), 3, device=device), keys_for(20_000, device)
    )
    assert not accepted.any() and log_p.isfinite().all()
    assert g_test(token.cpu(), law) > P_VALUE


def test_where_p_is_q_no_residual_is_left_by_rounding(device):
    p, keys = random_logits(60, 3000), keys_for(60)
    p[:, 3] = -torch.inf
    draft = torch.full((60,), 3)
    want = reference.residual_draw(p, p, draft, keys)
    got = ops.residual_draw(*(x.to(device) for x in (p, p, draft, keys)))
    assert (got[0].cpu() != want[0]).sum() <= 1


def test_drafts_that_one_of_them_has_not(device):
    inf = torch.inf
    p = torch.tensor([[0.0, -inf, 1.0], [0.0, -inf, 1.0]], device=device)
    q = torch.tensor([[-inf, 0.0, 0.0], [-inf, 0.0, 0.0]], device=device)
    token, accepted, log_p = ops.residual_draw(
        p, q, torch.tensor([0, 1], device=device), keys_for(2, device)
    )
    assert accepted.tolist() == [True, False] and token.tolist()[0] == 0
    # Of token 2 q has less than p has, of token 1 p has nothing.
    assert token[1] in (0, 2) and log_p.isfinite().all()
    token, accepted, _ = ops.residual_draw(
        p, q, torch.tensor([2, 2], device=device), keys_for(2, device), forbidden_p=2
    )
    assert token.tolist() == [0, 0] and not accepted.any()


def test_the_tail_is_drawn_as_often_as_it_should_be(device):
    """Tokens 14.5 nats below the one that q drafts, frequent only as a whole."""
    tail, rows = 8192, 400_000
    p = torch.full((1, tail + 1), -14.5)
    p[0, tail // 3] = 0
    q = torch.full_like(p, -torch.inf)
    q[0, tail // 3] = 0
    share = float(1 - reference.log_softmax(p)[0, tail // 3].exp())
    drafts = torch.full((rows,), tail // 3, device=device)
    p, q = (x.to(device).expand(rows, -1) for x in (p, q))
    token, accepted, _ = ops.residual_draw(p, q, drafts, keys_for(rows, device))
    drawn = token[~accepted].cpu()
    assert (drawn != tail // 3).all()
    assert stats.binomtest(len(drawn), rows, share).pvalue > P_VALUE
    lower = int((drawn < tail // 2).sum())
    assert stats.binomtest(lower, len(drawn), 0.5).pvalue > P_VALUE
    repeats, expected = len(drawn) - len(drawn.unique()), len(drawn) ** 2 / 2 / tail
    assert abs(repeats - expected) < 5 * max(1, expected) ** 0.5


def test_a_row_does_not_depend_on_its_batch_its_threads_or_its_stride(device):
    p, q = (x.to(device) for x in pairs(40, 5001))
    keys = keys_for(40, device)
    draft = keys % 5001
    whole = ops.residual_draw(p, q, draft, keys)
    order = torch.randperm(40, generator=torch.Generator().manual_seed(1)).to(device)
    shuffled = ops.residual_draw(p[order], q[order], draft[order], keys[order])
    assert equal([part[order] for part in whole], shuffled)
    assert equal(ops.residual_draw(poisoned_rows(p), poisoned_rows(q, 1), draft, keys), whole)
    assert equal(ops.residual_draw(p, q.clone(), draft.repeat_interleave(2)[::2], keys), whole)
    alone = [ops.residual_draw(*(x[i : i + 1] for x in (p, q, draft, keys))) for i in range(len(p))]
    assert equal([torch.cat(part) for part in zip(*alone, strict=True)], whole)
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        assert equal(ops.residual_draw(p, q, draft, keys), whole)
    finally:
        torch.set_num_threads(threads)


def test_no_rows(device):
    empty = torch.empty(0, dtype=torch.int64, device=device)
    logits = torch.empty(0, 9, device=device)
    for made in ops.residual_draw(logits, logits, empty, empty):
        assert made.shape == (0,)


@pytest.mark.parametrize("which", ["logits_p", "logits_q"])
@pytest.mark.parametrize("vocab", [4, 3000])
@pytest.mark.parametrize(
    ("entry", "found"), [(torch.nan, "NaN"), (torch.inf, "NaN or"), (-torch.inf, "allows nothing")]
)
def test_bad_rows(which, vocab, entry, found):
    logits = {"logits_p": torch.zeros(3, vocab), "logits_q": torch.zeros(3, vocab)}
    logits[which][2, slice(None) if found == "allows nothing" else -1] = entry
    for module in (ops, reference):
        with pytest.raises(RuntimeError, match=f"{which} row 2 .*{found}"):
            module.residual_draw(*logits.values(), keys_for(3) * 0, keys_for(3))


def test_bad_arguments():
    p, keys = torch.zeros(7, 5), keys_for(7)
    draft = keys * 0
    draw = ops.residual_draw
    for bad in (-1, 5):
        for module in (ops, reference):
            with pytest.raises(RuntimeError, match="draft row 6 is outside the vocabulary"):
                module.residual_draw(p, p, draft.index_fill(0, torch.tensor([6]), bad), keys)
    with pytest.raises(RuntimeError, match=r"logits_q must be float32 with 7 rows.*bfloat16 \[7"):
        draw(p, p.bfloat16(), draft, keys)
    with pytest.raises(RuntimeError, match=r"with 7 rows, as logits_p, got float32 \[6, 5\]"):
        draw(p, p[:6], draft, keys)
    with pytest.raises(RuntimeError, match=r"logits_p must be float32.*got float64"):
        draw(p.double(), p.double(), draft, keys)
    with pytest.raises(RuntimeError, match=r"logits_q must have shape \[rows, vocab\]"):
        draw(p, p[0], draft, keys)
    with pytest.raises(RuntimeError, match="logits_q must be contiguous in its last dim"):
        draw(p, torch.zeros(5, 7).T, draft, keys)
    with pytest.raises(RuntimeError, match=r"draft must be int64 with shape \[7\], got float32"):
        draw(p, p, draft.float(), keys)
    with pytest.raises(RuntimeError, match=r"keys must be int64 with shape \[7\], got int64 \[6\]"):
        draw(p, p, draft, keys[:6])
    with pytest.raises(RuntimeError, match=r"forbidden_q must be -1 or in \[0, 5\), got 5"):
        draw(p, p, draft, keys, forbidden_q=5)
    with pytest.raises(RuntimeError, match=r"forbidden_p must be -1 or in \[0, 4\), got 4"):
        draw(p[:, :4], p, draft, keys, forbidden_p=4)
    with pytest.raises(RuntimeError, match=r"temperature_p must be in \[1e-30, 1e\+30\], got 0"):
        draw(p, p, draft, keys, temperature_p=0.0)
    with pytest.raises(RuntimeError, match=r"temperature_q must be in \[1e-30, 1e\+30\], got -1"):
        draw(p, p, draft, keys, temperature_q=-1.0)


@pytest.mark.parametrize("temperature", [1e-30, 1e30])
def test_extreme_temperatures(temperature, device):
    p, q = (x.to(device) for x in pairs(500, 4099))
    options = {"temperature_p": temperature, "temperature_q": temperature}
    draft = q.argmax(dim=1) if temperature < 1 else torch.arange(500, device=device)
    token, accepted, _ = ops.residual_draw(p, q, draft, keys_for(500, device), **options)
    if temperature < 1:
        assert torch.equal(token, p.argmax(dim=1))
    else:
        assert accepted.all()  # both are uniform


def test_opcheck_and_no_gradient():
    p, q = pairs(4, 30)
    draft, keys = torch.arange(4), keys_for(4)
    torch.library.opcheck(
        torch.ops.edlm.residual_draw.default, (p, q, draft, keys, 0, -1, 1.0, 0.9)
    )
    log_p = ops.residual_draw(p.requires_grad_(), q, draft, keys)[2]
    with pytest.raises(RuntimeError, match="residual_draw has no gradient: use token_log_probs"):
        log_p.sum().backward()


def test_compiles_whole():
    @torch.compile(fullgraph=True, backend="aot_eager")
    def draw(p, q, draft, keys):
        return ops.residual_draw(p * 1, q, draft, keys)

    inputs = (*pairs(4, 30), torch.arange(4), keys_for(4))
    assert equal(draw(*inputs), ops.residual_draw(*inputs))
