import functools
import math

import pytest
import torch
from enumeration import TinyDenoiser, completions
from tiny_models import TableAR

from edlm_engine import ARResidualEnergy, reference
from edlm_engine.energies.protocol import energy_function
from edlm_engine.energies.residual import sequence_log_probs
from edlm_engine.models import ARConfig, AutoregressiveTransformer

MASK = 2


def some_candidates(batch=3, candidates=4, length=4, seed=0):
    """xt with masks and x0 [B, K, L] that completes it; tokens 0, 1 and 3, mask 2."""
    generator = torch.Generator().manual_seed(seed)
    xt = torch.randint(4, (batch, length), generator=generator)
    xt[0, :2] = MASK
    tokens = torch.tensor([0, 1, 3])
    fill = tokens[torch.randint(3, (batch, candidates, length), generator=generator)]
    x0 = torch.where((xt == MASK)[:, None], fill, xt[:, None])
    return x0, xt, torch.randn(batch, candidates, generator=generator)


@pytest.mark.parametrize("carry_over", [False, True])
@pytest.mark.parametrize("first_position", [0, 1])
@pytest.mark.parametrize("max_tokens", [1, 9, 16_384])
def test_equation_9_by_hand(carry_over, first_position, max_tokens):
    ar = TableAR(4, 4, first_position=first_position, forbidden_id=MASK)
    x0, xt, log_q = some_candidates()
    energy = ARResidualEnergy(ar, carry_over, max_tokens=max_tokens)
    got = energy(x0, xt, log_q, torch.ones(3))
    assert got.dtype == torch.float32 and got.shape == (3, 4)
    for b in range(3):
        scored = torch.arange(4) >= first_position
        if carry_over:
            scored &= xt[b] == MASK
        for k in range(4):
            log_p = ar.log_probs(x0[b, k].tolist())[scored.numpy()].sum()
            assert abs(got[b, k] - (log_q[b, k] - log_p)) < 1e-5


def test_low_energy_is_likely_text():
    """Summed over all completions, exp(log_q - E) is p_AR of the known part: the sign and scale."""
    ar = TableAR(4, 3, forbidden_id=MASK)
    tiny = TinyDenoiser(vocab=4, length=3, mask_id=MASK)
    x0 = torch.tensor(completions(tiny, (MASK, MASK, MASK)))[None]
    log_q = torch.randn(1, x0.shape[1], generator=torch.Generator().manual_seed(0))
    xt = torch.full((1, 3), MASK)
    energies = ARResidualEnergy(ar)(x0, xt, log_q, torch.ones(1))
    assert abs(torch.logsumexp(log_q - energies, 1)) < 1e-5


def test_impossible_candidates_get_infinity():
    ar = TableAR(4, 4, forbidden_id=3)
    x0, xt, log_q = some_candidates()
    got = ARResidualEnergy(ar)(x0, xt, log_q, torch.ones(3))
    holds = (x0 == 3).any(dim=2)
    assert holds.any() and not holds.all()
    assert (got[holds] == math.inf).all() and got[~holds].isfinite().all()


def test_a_transformer_scores_as_its_logits_do():
    torch.manual_seed(0)
    for bos_id in (0, None):
        config = ARConfig(
            vocab_size=30, length=8, hidden_dim=16, n_blocks=2, n_heads=2, bos_id=bos_id
        )
        model = AutoregressiveTransformer(config).eval()
        torch.nn.init.normal_(model.output_layer.linear.weight)
        tokens = torch.randint(30, (5, 8))
        with torch.inference_mode():
            log_probs = model.logits(tokens).double().log_softmax(-1)
            first = model.first_position
            each = log_probs.gather(-1, tokens[..., None])[:, first:, 0]
            got = sequence_log_probs(model, tokens, max_tokens=16)
        assert torch.allclose(got, each.sum(1), rtol=0, atol=1e-4)


@pytest.mark.parametrize("carry_over", [False, True])
@pytest.mark.parametrize("bos_id", [0, None])
@pytest.mark.parametrize("max_tokens", [8, 40, 10_000])
def test_a_shared_prefix_changes_no_energy(carry_over, bos_id, max_tokens, monkeypatch):
    torch.manual_seed(0)
    config = ARConfig(vocab_size=30, length=8, hidden_dim=16, n_blocks=2, n_heads=2, bos_id=bos_id)
    model = AutoregressiveTransformer(config).eval()
    torch.nn.init.normal_(model.output_layer.linear.weight)
    xt = torch.randint(29, (3, 8))
    xt[0, 5:], xt[1, 4:], xt[2, 6] = 29, 29, 29
    x0 = torch.where((xt == 29)[:, None], torch.randint(29, (3, 5, 8)), xt[:, None])
    given = x0, xt, torch.randn(3, 5), torch.ones(3)
    energy = ARResidualEnergy(model, carry_over, max_tokens=max_tokens)
    prefixes = []
    shared = model.hidden_after_prefix

    def recording(tokens, prefix):
        prefixes.append(prefix)
        return shared(tokens, prefix)

    model.hidden_after_prefix = recording
    with torch.inference_mode():
        got = energy(*given)
        # Per call the shortest prefix of its sequences: all three, or one at a time.
        assert set(prefixes) == {8: set(), 40: {4, 5, 6}, 10_000: {4}}[max_tokens]
        monkeypatch.setattr("edlm_engine.energies.residual.SHORTEST_PREFIX", 2.0)
        wanted = energy(*given)
    assert torch.allclose(got, wanted, rtol=0, atol=1e-4) and wanted.std() > 1


def test_sums_do_not_depend_on_the_order():
    generator = torch.Generator().manual_seed(0)
    values = -(10 ** (torch.rand(4096, generator=generator) * 14 - 12))  # 1e-12 to 100 nats
    exact = reference.on_grid(values)
    assert exact.dtype == torch.float64 and (exact - values.double()).abs().max() <= 2.0**-31
    orders = [torch.randperm(4096, generator=generator) for _ in range(20)]

    def sums(x):
        return {x[order].numpy().cumsum()[-1] for order in orders}  # one by one, in x's dtype

    assert sums(exact) == {exact.sum().item()} == {math.fsum(exact.tolist())}
    assert len(sums(values)) > 1 and len(sums(values.double())) > 1  # what the grid is for
    special = reference.on_grid(torch.tensor([-math.inf, math.nan]))
    assert special[0] == -math.inf and special[1].isnan()


@pytest.mark.parametrize("carry_over", [False, True])
def test_scores_are_sums_on_the_grid(carry_over):
    """Also of tokens that the model is sure of, whose log-probabilities are finer than the grid."""
    ar = TableAR(4, 4, forbidden_id=MASK)
    ar.head = tuple(12 * x for x in ar.head)
    x0, xt, log_q = some_candidates(batch=200)
    energies = ARResidualEnergy(ar, carry_over)(x0, xt, log_q * 0, torch.ones(200))
    scores = [energies.double().flatten()]
    if not carry_over:
        scores.append(sequence_log_probs(ar, x0.flatten(0, 1)))
    for each in scores:
        fine = each[each.abs() < 2.0**-7] * 2.0**30
        assert len(fine) > 3 and (fine != 0).any() and (fine == fine.round()).all()


def test_it_is_a_callable_and_an_object_with_the_method():
    energy = ARResidualEnergy(TableAR(4, 4))
    x0, xt, log_q = some_candidates()
    given = x0, xt, log_q, torch.ones(3)
    assert torch.equal(energy(*given), energy.energy(*given))


@pytest.mark.parametrize("carry_over", [False, True])
def test_masked_positions_may_be_given(carry_over):
    energy = ARResidualEnergy(TableAR(4, 4), carry_over)
    x0, xt, log_q = some_candidates()
    given, masked = (x0, xt, log_q, torch.ones(3)), (xt == MASK).numpy()
    assert torch.equal(energy(*given, masked=masked), energy(*given))
    # The host's word counts, not the tokens: a draw that failed may look like a known position.
    assert torch.equal(energy(*given, masked=~masked), energy(*given)) != carry_over


def test_an_energy_is_told_the_masked_positions_if_it_asks():
    class Doubled(ARResidualEnergy):
        def energy(self, x0, xt, log_q, t):
            return 2 * super().energy(x0, xt, log_q, t)

    def asks(x0, xt, log_q, t, masked):
        return masked

    def does_not(x0, xt, log_q, t):
        return "nothing"

    class Module(torch.nn.Module):
        def forward(self, x0, xt, log_q, t):
            return "a module"

    wrapped = functools.wraps(asks)(lambda *given: len(given))
    given = (*some_candidates(), torch.ones(3))
    for energy, wanted in ((asks, "told"), (does_not, "nothing"), (wrapped, 4)):
        assert energy_function(energy)(*given, masked="told") == wanted
    assert energy_function(Module())(*given, masked="told") == "a module"
    ar = TableAR(4, 4)
    masked = (given[1] == MASK).numpy()
    doubled = energy_function(Doubled(ar, True))(*given, masked=masked)
    assert torch.equal(doubled, 2 * ARResidualEnergy(ar, True)(*given))


def test_bad_max_tokens():
    with pytest.raises(ValueError, match="max_tokens must be >= 1, got 0"):
        ARResidualEnergy(TableAR(4, 4), max_tokens=0)
