"""A causal language model of transformers as a scorer: its own loss, its KV cache, the mask."""

import pytest
import torch
import torch.nn.functional as F
from tiny_llama import save_tiny_gguf, tiny_llama

from edlm_engine import ARResidualEnergy
from edlm_engine.energies.residual import sequence_log_probs
from edlm_engine.models.causal_lm import CausalLMScorer, locate_gguf, read_causal_lm


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
