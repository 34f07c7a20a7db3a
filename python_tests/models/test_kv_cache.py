"""Going on from a cache is the one pass, wherever sequences stand and whatever is taken back."""

import pytest
import torch
from tiny_llama import tiny_llama

from edlm_engine.models import ARConfig, AutoregressiveTransformer, CausalLMScorer


def ar(bos_id):
    torch.manual_seed(0)
    sizes = {"length": 12, "hidden_dim": 32, "n_blocks": 2, "n_heads": 4}
    model = AutoregressiveTransformer(ARConfig(vocab_size=10, bos_id=bos_id, **sizes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape))
    return model


def gpt2():
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    sizes = {"vocab_size": 10, "n_positions": 9, "n_embd": 8, "n_layer": 2, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, initializer_range=0.5)).eval()


def tokens(rows, length, seed=1):
    return torch.randint(10, (rows, length), generator=torch.Generator().manual_seed(seed))


MODELS = {
    "ours": ar,
    "llama": lambda bos_id: CausalLMScorer(tiny_llama(10), bos_id),
    "llama, eager": lambda bos_id: CausalLMScorer(
        tiny_llama(10, attn_implementation="eager"), bos_id
    ),
    "gpt2": lambda bos_id: CausalLMScorer(gpt2(), bos_id),
}
ROWS = 3


@pytest.fixture(params=MODELS)
def make(request):
    return MODELS[request.param]


def check(model, x0, cache, start, count):
    """The step's rows are those of the whole pass, as far as the sequence goes."""
    got = model.hidden_step(x0, cache, start, count)
    assert got.shape[:2] == (len(x0), count) and got.isfinite().all()
    whole = model.hidden(x0)
    for mine, row, wanted in zip(got, start.tolist(), whole, strict=True):
        wanted = wanted[row : row + count]
        torch.testing.assert_close(mine[: len(wanted)], wanted, rtol=0, atol=2e-5)


@pytest.mark.parametrize("bos_id", [3, None])
@torch.no_grad()
def test_random_cuts_and_what_is_taken_back(make, bos_id):
    model = make(bos_id)
    first, length = model.first_position, 8
    random = torch.Generator().manual_seed(0)
    cache, x0 = model.start_cache(ROWS, length), tokens(ROWS, length)
    start = torch.full((ROWS,), first)
    for turn in range(30):
        count = int(torch.randint(1, length - first + 1, (), generator=random))
        check(model, x0, cache, start, count)
        assert torch.equal(cache.filled, (start + count).clamp(max=length))
        # Each sequence goes on from any row it has cached; what comes then may have changed.
        share = torch.rand(ROWS, generator=random)
        start = first + ((cache.filled - first + 1) * share).long()
        start = torch.minimum(start, torch.full_like(start, length - 1))
        later = torch.arange(length) >= start[:, None]
        x0 = torch.where(later, tokens(ROWS, length, seed=turn), x0)


@pytest.mark.parametrize("bos_id", [3, None])
@torch.no_grad()
def test_a_token_at_a_time(make, bos_id):
    model = make(bos_id)
    x0, cache = tokens(ROWS, 8), model.start_cache(ROWS)
    for row in range(model.first_position, 8):
        check(model, x0, cache, torch.full((ROWS,), row), 1)


@torch.no_grad()
def test_only_the_step_goes_through_the_blocks(make):
    model = make(3)
    x0, cache = tokens(ROWS, 8), model.start_cache(ROWS, 8)
    model.hidden_step(x0, cache, torch.zeros(ROWS, dtype=torch.int64), 5)
    sizes = []
    for module in model.modules():
        if isinstance(module, torch.nn.LayerNorm) or "Norm" in type(module).__name__:
            module.register_forward_pre_hook(lambda _, args: sizes.append(args[0].shape[1]))
    model.hidden_step(x0, cache, torch.tensor([5, 4, 1]), 2)
    assert set(sizes) == {2}


@torch.no_grad()
def test_a_changed_token_before_the_start_is_not_seen(make):
    """The cache does hold the past: the same step on other early tokens gives the old states."""
    model = make(3)
    x0, cache = tokens(ROWS, 8), model.start_cache(ROWS)
    start = torch.full((ROWS,), 4)
    model.hidden_step(x0, cache, torch.zeros_like(start), 4)
    got = model.hidden_step(x0, cache, start, 2)
    changed = x0.clone()
    changed[:, 1] = (changed[:, 1] + 1) % 10
    assert torch.equal(model.hidden_step(changed, cache, start, 2), got)
    assert (model.hidden(changed)[:, 4:6] - got).abs().max() > 1e-3


@torch.no_grad()
def test_some_sequences_are_kept(make):
    model = make(3)
    x0, cache = tokens(ROWS, 8), model.start_cache(ROWS)
    model.hidden_step(x0, cache, torch.zeros(ROWS, dtype=torch.int64), 5)
    order = torch.tensor([2, 0])
    cache.keep(order)
    check(model, x0[order], cache, torch.tensor([5, 3]), 3)


@torch.no_grad()
def test_sixteen_bit_blocks():
    model = ar(bos_id=3).blocks_to(torch.bfloat16)
    x0, cache = tokens(ROWS, 8), model.start_cache(ROWS)
    model.hidden_step(x0, cache, torch.zeros(ROWS, dtype=torch.int64), 4)
    got = model.hidden_step(x0, cache, torch.tensor([4, 3, 2]), 2)
    assert got.dtype == torch.float32
    whole = model.hidden(x0)
    for mine, row, wanted in zip(got, (4, 3, 2), whole, strict=True):
        assert (mine - wanted[row : row + 2]).abs().max() < 0.05 * whole.abs().max()


def test_bad_arguments(make):
    model = make(3)
    cache, x0 = model.start_cache(ROWS, 6), tokens(ROWS, 6)
    zero = torch.zeros(ROWS, dtype=torch.int64)
    step = model.hidden_step
    with pytest.raises(ValueError, match=r"start of row 1 must be in \[0, 0\].*, got 2"):
        step(x0, cache, torch.tensor([0, 2, 0]), 1)
    step(x0, cache, zero, 3)
    with pytest.raises(ValueError, match=r"start of row 2 must be in \[0, 3\], what it has cached"):
        step(x0, cache, torch.tensor([3, 3, 4]), 1)
    with pytest.raises(ValueError, match=r"start of row 0 must be in \[0, 3\].*, got -1"):
        step(x0, cache, zero - 1, 1)
    with pytest.raises(ValueError, match=r"start must be int64 with shape \[3\], got torch.int32"):
        step(x0, cache, zero.int(), 1)
    with pytest.raises(ValueError, match=r"tokens must have shape \[3, 1 to 6\].*got \[2, 6\]"):
        step(x0[:2], cache, zero[:2], 1)
    with pytest.raises(ValueError, match=r"tokens must have shape \[3, 1 to 6\].*got \[3, 7\]"):
        step(tokens(ROWS, 7), cache, zero, 1)
    with pytest.raises(ValueError, match="count must be an integer >= 1, got 0"):
        step(x0, cache, zero, 0)
    with pytest.raises(ValueError, match="rows must be an integer >= 1, got 0"):
        model.start_cache(0)
    with pytest.raises(ValueError, match=r"length must be at most \d+, the model's, got 99"):
        model.start_cache(1, 99)


def test_without_a_bos_a_step_starts_at_one():
    model = ar(bos_id=None)
    with pytest.raises(ValueError, match=r"start of row 0 must be in \[1, 1\].*, got 0"):
        model.hidden_step(tokens(1, 6), model.start_cache(1), torch.zeros(1, dtype=torch.int64), 1)


def test_models_that_cannot_are_refused():
    from transformers import BloomConfig, BloomForCausalLM, MistralConfig, MistralForCausalLM

    sizes = {"vocab_size": 12, "hidden_size": 16, "num_attention_heads": 4}
    config = MistralConfig(
        **sizes, num_hidden_layers=1, intermediate_size=16, num_key_value_heads=2, sliding_window=6
    )
    window = CausalLMScorer(MistralForCausalLM(config), 0)
    with pytest.raises(ValueError, match="length must be at most 6, the model's window, got 7"):
        window.start_cache(1, 7)
    assert window.start_cache(1, 6).length == 6
    # Its bias by distance counts the tokens of a mask, not positions.
    bloom = BloomForCausalLM(BloomConfig(**{**sizes, "n_layer": 1, "n_head": 4}))
    bloom.config.max_position_embeddings = 16
    with pytest.raises(ValueError, match="BloomForCausalLM cannot go on from a cache"):
        CausalLMScorer(bloom, 0).start_cache(1)
