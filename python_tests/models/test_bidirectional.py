"""The adapted denoiser against transformers itself, with every position shown to every other."""

import pytest
import torch
import torch.nn.functional as F
from all_visible import all_visible
from tiny_llama import tiny_llama

from edlm_engine.models.bidirectional import BidirectionalCausalLM
from edlm_engine.models.low_rank import LowRankLinear, add_low_rank


@pytest.mark.parametrize("bos_id", [0, None])
@torch.no_grad()
def test_equals_the_model_under_a_mask_that_shows_all(bos_id):
    denoiser = BidirectionalCausalLM(tiny_llama(), mask_id=1, bos_id=bos_id, length=9)
    xt = torch.randint(0, 5, (3, 9))
    seen = xt if bos_id is None else F.pad(xt, (1, 0), value=bos_id)
    wanted = all_visible(tiny_llama(), seen)[:, :9]
    torch.testing.assert_close(denoiser.logits(xt), wanted, rtol=0, atol=1e-4)
    weight, bias = denoiser.head
    assert bias is None and denoiser.hidden(xt).shape == (3, 9, 16)
    torch.testing.assert_close(denoiser.hidden(xt) @ weight.T, wanted, rtol=0, atol=1e-4)


@torch.no_grad()
def test_every_row_depends_on_every_position():
    denoiser = BidirectionalCausalLM(tiny_llama(), mask_id=1, bos_id=0, length=6)
    xt = torch.tensor([[2, 3, 4, 2, 3, 4]])
    for position in range(6):
        other = xt.clone()
        other[0, position] = 1
        changed = (denoiser.hidden(other) - denoiser.hidden(xt)).abs().amax(-1)[0]
        assert (changed > 1e-4).all(), position


def test_the_written_out_attention_is_the_fused_one():
    denoiser = BidirectionalCausalLM(tiny_llama(), mask_id=1, bos_id=0, length=9)
    xt = torch.randint(0, 5, (3, 9))
    with_gradient = denoiser.hidden(xt)
    with torch.no_grad():
        torch.testing.assert_close(with_gradient, denoiser.hidden(xt), rtol=0, atol=1e-5)
    assert with_gradient.requires_grad


def test_what_is_shown_in_training_mode_only():
    denoiser = BidirectionalCausalLM(tiny_llama(), mask_id=1, bos_id=0, length=6)
    xt = torch.tensor([[2, 3, 4, 2, 3, 4]])
    everything = denoiser.hidden(xt)
    denoiser.visible = torch.ones(7, 7, dtype=torch.bool).tril()[None, None]
    assert torch.equal(denoiser.hidden(xt), everything)
    causal = tiny_llama().model(input_ids=F.pad(xt, (1, 0))).last_hidden_state[:, :-1]
    shown = denoiser.train().hidden(xt)
    torch.testing.assert_close(shown, causal, rtol=0, atol=1e-4)


@torch.no_grad()
def test_the_mask_has_its_own_embedding():
    embedding = torch.full((16,), 0.3)
    denoiser = BidirectionalCausalLM(
        tiny_llama(), mask_id=1, bos_id=0, length=6, mask_embedding=embedding
    )
    xt = torch.tensor([[2, 1, 4, 1, 3, 4]])
    changed = tiny_llama()
    changed.get_output_embeddings().weight = torch.nn.Parameter(changed.lm_head.weight.clone())
    changed.get_input_embeddings().weight[1] = embedding
    wanted = all_visible(changed, F.pad(xt, (1, 0)))[:, :6]
    torch.testing.assert_close(denoiser.logits(xt), wanted, rtol=0, atol=1e-4)


def test_parameters_are_shared_and_the_source_stays_causal():
    source = tiny_llama()
    xt = torch.randint(0, 5, (2, 9))
    before = source(input_ids=xt).logits
    denoiser = BidirectionalCausalLM(source, mask_id=1, bos_id=0)
    shared = dict(denoiser.model.named_parameters())
    assert shared and all(shared[name] is p for name, p in source.named_parameters())
    assert denoiser.length == 31 and denoiser.any_length
    assert torch.equal(source(input_ids=xt).logits, before)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mask_id": 5}, r"mask_id must be in \[0, 5\), got 5"),
        ({"mask_id": 1, "bos_id": -1}, r"bos_id must be in \[0, 5\), got -1"),
        ({"mask_id": 1, "bos_id": 0, "length": 32}, r"length must be in \[1, 31\], got 32"),
    ],
)
def test_bad_arguments_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        BidirectionalCausalLM(tiny_llama(), **options)


@torch.no_grad()
def test_low_rank_layers_are_the_merged_ones_beside_shared_weights():
    source, merged = tiny_llama(), tiny_llama()
    name = "model.layers.1.mlp.down_proj"
    down, up = torch.randn(3, 32), torch.randn(16, 3)
    denoiser = BidirectionalCausalLM(source, mask_id=1, bos_id=0)
    add_low_rank(denoiser.model, {name: (down, up)})
    merged.get_submodule(name).weight += up @ down
    wanted = BidirectionalCausalLM(merged, mask_id=1, bos_id=0)
    xt = torch.randint(0, 5, (2, 9))
    torch.testing.assert_close(denoiser.logits(xt), wanted.logits(xt), rtol=0, atol=1e-3)
    layer = denoiser.model.get_submodule(name)
    assert isinstance(layer, LowRankLinear)
    assert layer.weight is source.get_submodule(name).weight


def test_low_rank_changes_that_do_not_fit_are_named():
    model = tiny_llama()
    with pytest.raises(ValueError, match=r"no linear layers \['model.norm', 'nowhere'\]"):
        add_low_rank(model, {"nowhere": (None, None), "model.norm": (None, None)})
    change = {"model.layers.0.self_attn.k_proj": (torch.zeros(2, 16), torch.zeros(9, 2))}
    with pytest.raises(ValueError, match=r"k_proj: down and up must have shapes .*got .*\[9, 2\]"):
        add_low_rank(model, change)


@torch.no_grad()
def test_shifted_without_a_token_in_front_keeps_its_first_row():
    denoiser = BidirectionalCausalLM(tiny_llama(), mask_id=1, shifted=True)
    xt = torch.randint(0, 5, (3, 9))
    wanted = all_visible(tiny_llama(), xt)
    wanted = torch.cat((wanted[:, :1], wanted[:, :-1]), 1)
    torch.testing.assert_close(denoiser.logits(xt), wanted, rtol=0, atol=1e-4)


@torch.no_grad()
def test_tokens_that_are_never_drawn_have_probability_zero_and_the_source_keeps_them():
    source = tiny_llama()
    denoiser = BidirectionalCausalLM(source, mask_id=1, never_drawn=[4, 2])
    xt = torch.randint(0, 5, (3, 9))
    logits, wanted = denoiser.logits(xt), all_visible(tiny_llama(), xt)
    assert logits[..., [2, 4]].eq(-torch.inf).all()
    torch.testing.assert_close(logits[..., [0, 1, 3]], wanted[..., [0, 1, 3]], rtol=0, atol=1e-4)
    assert source.get_output_embeddings().bias is None
    with pytest.raises(ValueError, match=r"tokens must be in \[0, 5\), got 5 to 5"):
        BidirectionalCausalLM(source, mask_id=1, never_drawn=[5])
    with pytest.raises(ValueError, match="no token of 5 would be left to draw"):
        BidirectionalCausalLM(source, mask_id=1, never_drawn=range(5))
