"""Causal language models of transformers as scorers: their own loss, KV cache, the mask."""

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from tiny_llama import save_tiny_gguf, tiny_llama

from edlm_engine import ARResidualEnergy
from edlm_engine.checkpoints.bundle import load_ar
from edlm_engine.energies.residual import sequence_log_probs
from edlm_engine.models import CausalLMScorer
from edlm_engine.models.causal_lm import locate_gguf, read_causal_lm


def tiny_gpt2(bos_token_id):
    from transformers import GPT2Config, GPT2LMHeadModel

    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=13,
        n_positions=9,
        n_embd=8,
        n_layer=2,
        n_head=2,
        bos_token_id=bos_token_id,
        eos_token_id=None,
    )
    return GPT2LMHeadModel(config).eval()


def tokens(rows=3, length=8):
    return torch.randint(10, (rows, length), generator=torch.Generator().manual_seed(2))


@pytest.mark.parametrize("bos_id", [12, None])
def test_transformers_model_scores_as_itself(tmp_path, bos_id):
    model = tiny_gpt2(bos_id)
    model.save_pretrained(tmp_path)
    scorer = load_ar(tmp_path)
    assert isinstance(scorer, CausalLMScorer) and scorer.bos_id == bos_id
    assert scorer.vocab_size == 13 and scorer.length == 9 and scorer.forbidden_id == -1
    x0 = tokens(3, 9)
    seen = x0 if bos_id is None else torch.cat((torch.full((3, 1), bos_id), x0[:, :-1]), 1)
    wanted = model(input_ids=seen).logits
    first = scorer.first_position
    assert first == (1 if bos_id is None else 0)
    wanted = wanted[:, :-1] if bos_id is None else wanted
    got = scorer.logits(x0)
    assert got.shape == (3, 9, 13)
    torch.testing.assert_close(got[:, first:], wanted, rtol=0, atol=1e-5)
    weight, bias = scorer.head
    torch.testing.assert_close(scorer.hidden(x0)[:, first:] @ weight.T, wanted, rtol=0, atol=1e-5)
    assert bias is None


def test_transformers_model_in_bfloat16_keeps_its_float32_head(tmp_path):
    model = tiny_gpt2(12)
    model.save_pretrained(tmp_path)
    scorer = load_ar(tmp_path, dtype=torch.float32).blocks_to(torch.bfloat16)
    assert {p.dtype for p in scorer.model.base_model.parameters()} == {torch.bfloat16}
    assert torch.equal(scorer.head[0], model.lm_head.weight)
    x0 = tokens(3, 9)
    got, wanted = scorer.logits(x0), load_ar(tmp_path).logits(x0)
    assert got.dtype == torch.float32 and not torch.equal(got, got.bfloat16().float())
    assert 0 < (got - wanted).abs().max() < 0.05 * wanted.abs().max()


def test_transformers_model_with_capped_logits_is_refused():
    model = tiny_gpt2(12)
    head = model.lm_head.forward
    model.lm_head.forward = lambda x: 5 * torch.tanh(head(100 * x))
    with pytest.raises(ValueError, match="GPT2LMHeadModel does more to its logits"):
        CausalLMScorer(model, 12)


@torch.no_grad()
def test_scores_are_the_models_own_loss():
    model = tiny_llama()
    tokens = torch.randint(0, 5, (3, 12))
    seen = F.pad(tokens, (1, 0), value=0)
    losses = [model(input_ids=row[None], labels=row[None]).loss.item() * 12 for row in seen]
    got = sequence_log_probs(CausalLMScorer(model, bos_id=0), tokens)
    torch.testing.assert_close(-got, torch.tensor(losses).double(), rtol=1e-5, atol=0)


@torch.no_grad()
def test_the_mask_is_never_scored():
    scorer = CausalLMScorer(tiny_llama(), bos_id=0, forbidden_id=1)
    x0 = torch.randint(2, 5, (2, 6))
    logits = scorer.logits(x0).double()
    logits[..., 1] = -torch.inf
    wanted = logits.log_softmax(-1).gather(-1, x0[..., None])[..., 0].sum(1)
    torch.testing.assert_close(sequence_log_probs(scorer, x0), wanted, rtol=1e-5, atol=0)
    x0[0, 3] = 1
    assert sequence_log_probs(scorer, x0)[0] == -torch.inf


@pytest.mark.parametrize("bos_id", [0, None])
@torch.no_grad()
def test_a_known_prefix_goes_through_the_kv_cache_once(bos_id):
    scorer = CausalLMScorer(tiny_llama(), bos_id=bos_id)
    tokens = torch.randint(0, 5, (2, 3, 10))
    tokens[:, :, :4] = tokens[:, :1, :4]
    sizes = []
    scorer.model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: sizes.append(list(kwargs["input_ids"].shape)),
        with_kwargs=True,
    )
    before, after = scorer.hidden_after_prefix(tokens, 4)
    whole = scorer.hidden(tokens.flatten(0, 1)).unflatten(0, (2, 3))
    first = scorer.first_position
    assert sizes[:2] == [[2, 4 - first], [6, 6]]
    torch.testing.assert_close(before[:, first:], whole[:, 0, first:4], rtol=0, atol=1e-5)
    torch.testing.assert_close(after, whole[:, :, 4:], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match=r"prefix must be in .*, got 10"):
        scorer.hidden_after_prefix(tokens, 10)


@torch.no_grad()
def test_the_energy_with_a_known_prefix_is_the_energy_without():
    scorer = CausalLMScorer(tiny_llama(), bos_id=0, forbidden_id=1)
    x0 = torch.randint(2, 5, (2, 3, 10))
    x0[:, :, :5] = x0[:, :1, :5]
    xt = x0[:, 0].clone()
    xt[:, 5:] = 1
    log_q, t = torch.zeros(2, 3), torch.ones(2)
    got = ARResidualEnergy(scorer)(x0, xt, log_q, t)
    plain = -sequence_log_probs(scorer, x0.flatten(0, 1)).view(2, 3).float()
    torch.testing.assert_close(got, plain, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_gguf_file_scores_as_its_model(tmp_path):
    model = save_tiny_gguf(tmp_path / "tiny.gguf")
    tokens = torch.randint(0, 5, (2, 9))
    for source in (tmp_path, tmp_path / "tiny.gguf"):
        got = read_causal_lm(source)(input_ids=tokens).logits
        torch.testing.assert_close(got, model(input_ids=tokens).logits, rtol=0, atol=1e-4)


def test_what_is_no_model_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no model at .*nowhere"):
        read_causal_lm(tmp_path / "nowhere")
    (tmp_path / "one.gguf").write_bytes(b"GGUF and then nothing")
    with pytest.raises(ValueError, match=r"one\.gguf is damaged"):
        read_causal_lm(tmp_path / "one.gguf")
    (tmp_path / "two.gguf").touch()
    with pytest.raises(ValueError, match=r"must hold one GGUF file.*one.gguf.*two.gguf"):
        locate_gguf(tmp_path)
    (tmp_path / "text.txt").touch()
    with pytest.raises(ValueError, match=r"text.txt must be a folder or a .gguf file"):
        locate_gguf(tmp_path / "text.txt")


def edit_weights(folder, change):
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def lose_a_layer(tensors):
    for name in [name for name in tensors if ".h.1." in name]:
        del tensors[name]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lose_a_layer, r"has missing weights \[.*transformer\.h\.1\.attn\.c_attn\.weight"),
        (
            lambda t: t.pop("transformer.wpe.weight"),
            r"missing weights \['transformer\.wpe\.weight'\]",
        ),
        (lambda t: t.update(extra=torch.ones(2)), r"unexpected weights \[.*extra"),
        (
            lambda t: t.update({"transformer.wpe.weight": torch.ones(5, 8)}),
            r"wrongly shaped weights \[.*transformer\.wpe\.weight",
        ),
    ],
)
def test_weights_that_do_not_fit_are_named(tmp_path, capsys, change, message):
    """Transformers alone would fill the gaps at random and run."""
    tiny_gpt2(12).save_pretrained(tmp_path)
    edit_weights(tmp_path, change)
    capsys.readouterr()
    with pytest.raises(ValueError, match=message):
        load_ar(tmp_path)
    assert capsys.readouterr().err == ""


def test_a_config_over_unrelated_weights_is_refused(tmp_path):
    tiny_llama().save_pretrained(tmp_path)
    tiny_gpt2(12).config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"missing weights .*unexpected weights"):
        load_ar(tmp_path)


@pytest.mark.parametrize("keep", [0, 7, 0.5, 0.99])
def test_truncated_weights_are_refused(tmp_path, keep):
    tiny_gpt2(12).save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    content = file.read_bytes()
    file.write_bytes(content[: keep if isinstance(keep, int) else int(keep * len(content))])
    with pytest.raises(ValueError, match=f"{tmp_path} is damaged or not a causal language model"):
        load_ar(tmp_path)


def test_pickled_weights_are_not_read(tmp_path):
    model = tiny_gpt2(12)
    model.config.save_pretrained(tmp_path)
    torch.save(model.state_dict(), tmp_path / "pytorch_model.bin")
    with pytest.raises(ValueError, match=f"{tmp_path} is damaged or not a causal language model"):
        load_ar(tmp_path)
