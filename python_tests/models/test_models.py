"""The networks: MDLM's parameter names, what each output may depend on, and number formats."""

import math

import pytest
import torch
import torch.nn.functional as F

from edlm_engine.models import ARConfig, AutoregressiveTransformer, DiT, DiTConfig
from edlm_engine.models.layers import Rotary, attention, split_heads

SIZES = {"length": 12, "hidden_dim": 32, "n_blocks": 2, "n_heads": 4}


def randomise(model, seed=0):
    """Every parameter away from its start, so that gates and modulations take part."""
    random = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.2 * torch.randn(parameter.shape, generator=random))
    return model.eval()


def dit(**changes):
    torch.manual_seed(0)
    config = {"vocab_size": 11, "mask_id": 10, "cond_dim": 8, **SIZES, **changes}
    return randomise(DiT(DiTConfig(**config)))


def ar(**changes):
    torch.manual_seed(0)
    return randomise(AutoregressiveTransformer(ARConfig(**{"vocab_size": 10, **SIZES, **changes})))


def tokens(rows, length, vocab=10, seed=1):
    return torch.randint(vocab, (rows, length), generator=torch.Generator().manual_seed(seed))


def test_denoiser_has_the_names_and_shapes_of_published_weights():
    blocks, dim, cond, vocab = 2, 128, 16, 50
    model = DiT(DiTConfig(vocab, 8, dim, blocks, 2, mask_id=49, cond_dim=cond))
    wanted = {
        "vocab_embed.embedding": [vocab, dim],
        "sigma_map.mlp.0.weight": [cond, 256],
        "sigma_map.mlp.0.bias": [cond],
        "sigma_map.mlp.2.weight": [cond, cond],
        "sigma_map.mlp.2.bias": [cond],
        "rotary_emb.inv_freq": [32],
        "output_layer.norm_final.weight": [dim],
        "output_layer.linear.weight": [vocab, dim],
        "output_layer.linear.bias": [vocab],
        "output_layer.adaLN_modulation.weight": [2 * dim, cond],
        "output_layer.adaLN_modulation.bias": [2 * dim],
    }
    for i in range(blocks):
        wanted |= {
            f"blocks.{i}.norm1.weight": [dim],
            f"blocks.{i}.attn_qkv.weight": [3 * dim, dim],
            f"blocks.{i}.attn_out.weight": [dim, dim],
            f"blocks.{i}.norm2.weight": [dim],
            f"blocks.{i}.mlp.0.weight": [4 * dim, dim],
            f"blocks.{i}.mlp.0.bias": [4 * dim],
            f"blocks.{i}.mlp.2.weight": [dim, 4 * dim],
            f"blocks.{i}.mlp.2.bias": [dim],
            f"blocks.{i}.adaLN_modulation.weight": [6 * dim, cond],
            f"blocks.{i}.adaLN_modulation.bias": [6 * dim],
        }
    assert {name: list(t.shape) for name, t in model.state_dict().items()} == wanted
    # The exponential moving averages of published checkpoints hold parameters in this order.
    order = [name for name, _ in model.named_parameters()]
    assert order[:5] == [*wanted][:5] and len(order) == 5 + 10 * blocks + 5
    assert order[-5:] == [*wanted][6:11] and order[5:15] == [*wanted][11:21]


def test_ar_has_the_names_of_published_weights():
    model = AutoregressiveTransformer(ARConfig(50, 8, 128, 2, 2))
    names = [name for name, _ in model.named_parameters()]
    per_block = "norm1.weight attn_qkv.weight attn_out.weight norm2.weight"
    per_block = [*per_block.split(), *(f"mlp.{i}.{p}" for i in (0, 2) for p in ("weight", "bias"))]
    assert names == [
        "vocab_embed.embedding",
        *(f"blocks.{i}.{name}" for i in range(2) for name in per_block),
        *(f"output_layer.{name}" for name in ("norm_final.weight", "linear.weight", "linear.bias")),
    ]


def naive_denoiser_logits(model, xt, sigma):
    """The same network in float64, written from the published formulas."""
    w = {name: tensor.double() for name, tensor in model.state_dict().items()}
    heads = model.config.n_heads

    def norm(x, weight):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (x.var(-1, correction=0, keepdim=True) + 1e-5).sqrt() * weight

    def silu(x):
        return x / (1 + torch.exp(-x))

    angle = sigma.double()[:, None] * 10_000.0 ** -(torch.arange(128).double() / 128)
    c = torch.cat((angle.cos(), angle.sin()), -1)
    c = silu(c @ w["sigma_map.mlp.0.weight"].T + w["sigma_map.mlp.0.bias"])
    c = silu(c @ w["sigma_map.mlp.2.weight"].T + w["sigma_map.mlp.2.bias"])

    def chunks(prefix, n):
        out = c @ w[f"{prefix}.adaLN_modulation.weight"].T + w[f"{prefix}.adaLN_modulation.bias"]
        return out[:, None].chunk(n, -1)

    def turn(x):  # [B, L, head_dim]: pair j with j + head_dim / 2
        half = x.shape[-1] // 2
        theta = torch.arange(x.shape[1]).double()[:, None] * 10_000.0 ** -(
            torch.arange(half).double() / half
        )
        z = torch.complex(x[..., :half], x[..., half:]) * torch.exp(1j * theta)
        return torch.cat((z.real, z.imag), -1)

    x = w["vocab_embed.embedding"][xt]
    for i in range(model.config.n_blocks):
        p = f"blocks.{i}"
        shift1, scale1, gate1, shift2, scale2, gate2 = chunks(p, 6)
        h = norm(x, w[f"{p}.norm1.weight"]) * (1 + scale1) + shift1
        q, k, v = (h @ w[f"{p}.attn_qkv.weight"].T).chunk(3, -1)
        mixed = []
        for qh, kh, vh in zip(*(t.chunk(heads, -1) for t in (q, k, v)), strict=True):
            score = turn(qh) @ turn(kh).transpose(1, 2) / math.sqrt(qh.shape[-1])
            mixed.append(score.softmax(-1) @ vh)
        x = x + gate1 * (torch.cat(mixed, -1) @ w[f"{p}.attn_out.weight"].T)
        h = norm(x, w[f"{p}.norm2.weight"]) * (1 + scale2) + shift2
        h = h @ w[f"{p}.mlp.0.weight"].T + w[f"{p}.mlp.0.bias"]
        h = 0.5 * h * (1 + torch.tanh(math.sqrt(2 / math.pi) * (h + 0.044715 * h**3)))
        x = x + gate2 * (h @ w[f"{p}.mlp.2.weight"].T + w[f"{p}.mlp.2.bias"])
    shift, scale = chunks("output_layer", 2)
    h = norm(x, w["output_layer.norm_final.weight"]) * (1 + scale) + shift
    return h @ w["output_layer.linear.weight"].T + w["output_layer.linear.bias"]


@pytest.mark.parametrize("length", [12, 5])
@pytest.mark.parametrize("time_conditioning", [False, True])
def test_denoiser_follows_the_published_formulas(time_conditioning, length):
    model = dit(time_conditioning=time_conditioning)
    xt, sigma = tokens(3, length, vocab=11), torch.tensor([0.1, 1.0, 6.0])
    seen = sigma if time_conditioning else torch.zeros(3)
    torch.testing.assert_close(
        model.logits(xt, sigma).double(), naive_denoiser_logits(model, xt, seen), rtol=0, atol=2e-4
    )


def test_sigma_matters_only_with_time_conditioning():
    xt, low, high = tokens(2, 12), torch.full((2,), 0.1), torch.full((2,), 5.0)
    model = dit(time_conditioning=False)
    assert torch.equal(model.logits(xt, low), model.logits(xt, high))
    model = dit(time_conditioning=True)
    assert (model.logits(xt, low) - model.logits(xt, high)).abs().max() > 1e-3


@pytest.mark.parametrize("tied", [False, True])
def test_head_times_hidden_is_logits(tied):
    model, xt, sigma = dit(tie_word_embeddings=tied), tokens(2, 12), torch.zeros(2)
    weight, bias = model.head
    assert (weight is model.vocab_embed.embedding) == tied
    assert torch.equal(F.linear(model.hidden(xt, sigma), weight, bias), model.logits(xt, sigma))
    assert weight.shape == (model.vocab_size, 32) and model.mask_id == 10 and model.length == 12
    scorer, x0 = ar(tie_word_embeddings=tied, bos_id=0), tokens(2, 12)
    assert torch.equal(F.linear(scorer.hidden(x0), *scorer.head), scorer.logits(x0))


@pytest.mark.parametrize("bos_id", [None, 3])
def test_ar_row_sees_exactly_the_tokens_before_it(bos_id):
    model, x0 = ar(bos_id=bos_id), tokens(2, 12)
    assert model.first_position == (1 if bos_id is None else 0)
    before = model.hidden(x0)
    for changed in range(12):
        other = x0.clone()
        other[:, changed] = (other[:, changed] + 1) % 10
        moved = (model.hidden(other) - before).abs().amax((0, 2)) > 1e-6
        assert moved.tolist() == [row > changed for row in range(12)]


def test_ar_without_bos_has_a_defined_first_row():
    assert not ar(bos_id=None).hidden(tokens(2, 12))[:, 0].any()


def test_ar_bos_takes_part():
    x0 = tokens(2, 12)
    first = [ar(bos_id=bos).hidden(x0)[:, 0] for bos in (1, 2)]
    assert (first[0] - first[1]).abs().max() > 1e-3


def test_denoiser_sees_both_sides():
    model, xt = dit(), tokens(1, 12)
    other = xt.clone()
    other[0, 6] = (other[0, 6] + 1) % 10
    moved = (model.logits(xt, torch.zeros(1)) - model.logits(other, torch.zeros(1))).abs().amax(2)
    assert (moved > 1e-6).all()


def test_rows_do_not_mix():
    model, xt = dit(), tokens(3, 12)
    alone = torch.cat([model.logits(x[None], torch.zeros(1)) for x in xt])
    torch.testing.assert_close(model.logits(xt, torch.zeros(3)), alone, rtol=0, atol=1e-4)


def test_bfloat16_keeps_exact_angles_and_stays_close():
    exact, rounded = dit(), dit().to(torch.bfloat16)
    assert rounded.rotary_emb.inv_freq.dtype == torch.float32
    assert torch.equal(rounded.rotary_emb.inv_freq, exact.rotary_emb.inv_freq)
    xt, sigma = tokens(2, 12), torch.zeros(2)
    wanted = exact.logits(xt, sigma)
    got = rounded.logits(xt, sigma)
    assert got.dtype == torch.bfloat16
    assert (got.float() - wanted).abs().max() < 0.05 * wanted.abs().max()
    with torch.autocast("cpu", torch.bfloat16):
        autocast = exact.logits(xt, sigma)
    assert (autocast.float() - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_eval_is_deterministic_and_dropout_acts_in_training():
    model, xt, sigma = dit(dropout=0.5), tokens(2, 12), torch.zeros(2)
    assert torch.equal(model.logits(xt, sigma), model.logits(xt, sigma))
    model.train()
    assert not torch.equal(model.logits(xt, sigma), model.logits(xt, sigma))


def test_compiles_whole_under_inference_mode():
    model, scorer, xt, sigma = dit(), ar(bos_id=0), tokens(2, 12), torch.zeros(2)
    with torch.inference_mode():
        compiled = torch.compile(model.hidden, fullgraph=True, backend="aot_eager")(xt, sigma)
        torch.testing.assert_close(compiled, model.hidden(xt, sigma), rtol=0, atol=1e-4)
        compiled = torch.compile(scorer.hidden, fullgraph=True, backend="aot_eager")(xt)
        torch.testing.assert_close(compiled, scorer.hidden(xt), rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"mask_id": 11}, r"mask_id must be in \[0, 11\), got 11"),
        ({"n_heads": 5}, "hidden_dim must be a multiple"),
        ({"n_blocks": 0}, "n_blocks must be an integer >= 1, got 0"),
        ({"dropout": 1.0}, r"dropout must be in \[0, 1\), got 1.0"),
        ({"cond_dim": 0}, "cond_dim must be an integer >= 1, got 0"),
    ],
)
def test_bad_sizes_are_named(changes, match):
    with pytest.raises(ValueError, match=match):
        dit(**changes)


@pytest.mark.parametrize(
    ("changes", "match"),
    [({"bos_id": 10}, "bos_id must be None or"), ({"forbidden_id": 10}, "forbidden_id must be -1")],
)
def test_bad_ar_ids_are_named(changes, match):
    with pytest.raises(ValueError, match=match):
        ar(**changes)


def test_bad_tokens_are_named():
    with pytest.raises(ValueError, match=r"xt must be integers .* got torch.int64 \[2, 13\]"):
        dit().logits(tokens(2, 13), torch.zeros(2))
    with pytest.raises(ValueError, match=r"tokens must be integers .* got torch.float32 \[2, 3\]"):
        ar().hidden(torch.zeros(2, 3))


def test_folding_changes_nothing_but_speed():
    for tied in (False, True):
        model = dit(tie_word_embeddings=tied)
        names = set(dict(model.folded().named_parameters()))
        assert not any("adaLN" in name or "sigma" in name for name in names)
        xt, sigma = tokens(3, 12, vocab=11), torch.tensor([0.1, 1.0, 6.0])
        with torch.inference_mode():
            wanted = model.logits(xt, sigma)
            got = model.folded().logits(xt, sigma)
        assert wanted.std() > 0.5
        torch.testing.assert_close(got, wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="time_conditioning must be False to fold a DiT, got True"):
        dit(time_conditioning=True).folded()


@pytest.mark.parametrize(
    "make", [dit, lambda **c: dit(**c).folded(), lambda **c: ar(bos_id=0, **c)]
)
@pytest.mark.parametrize("tied", [False, True])
def test_bfloat16_blocks_leave_the_head_alone(make, tied):
    """The logits of such a model are float32 and not rounded to 8 bits on their way."""
    exact = make(tie_word_embeddings=tied)
    mixed = make(tie_word_embeddings=tied).blocks_to(torch.bfloat16)
    dtypes = {name: p.dtype for name, p in mixed.named_parameters()}
    assert all((dtypes[n] == torch.bfloat16) == n.startswith("blocks.") for n in dtypes)
    assert mixed.rotary_emb.inv_freq.dtype == torch.float32
    given = (tokens(2, 12),) if hasattr(exact, "bos_id") else (tokens(2, 12), torch.zeros(2))
    with torch.inference_mode():
        wanted, got = exact.logits(*given), mixed.logits(*given)
    assert got.dtype == torch.float32 and not torch.equal(got, got.bfloat16().float())
    error = (got - wanted).abs().max() / wanted.abs().max()
    assert 0 < error < 0.05


@pytest.mark.parametrize("bos_id", [3, None])
def test_a_shared_prefix_changes_no_hidden_state(bos_id):
    model = ar(bos_id=bos_id)
    x0 = tokens(2 * 3, 12).view(2, 3, 12)
    for prefix in (2, 7, 11):
        x0[:, :, :prefix] = x0[:, :1, :prefix]
        with torch.inference_mode():
            wanted = model.hidden(x0.flatten(0, 1)).view(2, 3, 12, -1)
            known, rest = model.hidden_after_prefix(x0, prefix)
        assert wanted[:, :, prefix:].std(dim=1).mean() > 0.1 or prefix == 11
        torch.testing.assert_close(known, wanted[:, 0, :prefix], rtol=0, atol=1e-5)
        torch.testing.assert_close(rest, wanted[:, :, prefix:], rtol=0, atol=1e-5)
    first = model.first_position
    for prefix in (first, 12):
        with pytest.raises(ValueError, match=rf"prefix must be in \({first}, 12\), got {prefix}"):
            model.hidden_after_prefix(x0, prefix)


@pytest.mark.parametrize("causal", [False, True])
def test_attention_is_the_same_with_a_gradient(causal):
    """On a CPU it is written out then: equal values and, against float64, equal gradients."""
    generator = torch.Generator().manual_seed(0)
    qkv = torch.randn(2, 9, 48, generator=generator, requires_grad=True)
    rotary = Rotary(8)(9)
    got = attention(qkv, 2, rotary, causal)
    with torch.no_grad():
        torch.testing.assert_close(attention(qkv, 2, rotary, causal), got)
    weight = torch.randn(got.shape, generator=generator)
    (gradient,) = torch.autograd.grad((got * weight).sum(), qkv)
    exact = qkv.detach().double().requires_grad_()
    q, k, v = split_heads(exact, 2, rotary)
    mixed = F.scaled_dot_product_attention(q, k, v, is_causal=causal).transpose(1, 2).flatten(2)
    (wanted,) = torch.autograd.grad((mixed * weight).sum(), exact)
    torch.testing.assert_close(gradient, wanted.float())
