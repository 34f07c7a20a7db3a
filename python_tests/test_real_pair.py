"""SmolLM2-135M as both halves, where its base weights are on the machine (`make real-models`)."""

import pytest
import torch

from edlm_engine import Engine, GenerationConfig
from edlm_engine.checkpoints.base import find_base
from edlm_engine.energies.residual import sequence_log_probs
from edlm_engine.evaluation.judge import Judge

TEXT = "The old man opened the door slowly, and looked round the room. It was empty."


@pytest.fixture(scope="module")
def engine(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        try:
            find_base("smollm2")
        except FileNotFoundError as error:
            pytest.skip(f"make real-models has not run: {error}")
        return Engine.from_pretrained("smollm2", dtype=torch.float32)


@torch.no_grad()
def test_scores_are_transformers_own_loss(engine):
    scorer = engine.energy.model
    tokens = torch.tensor([engine.tokenizer.encode(TEXT)])
    seen = torch.cat((torch.tensor([[engine.tokenizer.bos_id]]), tokens), 1)
    loss = scorer.model(input_ids=seen, labels=seen).loss.item() * tokens.shape[1]
    # The scorer leaves the mask out of each distribution; the model gives it next to nothing.
    assert -sequence_log_probs(scorer, tokens).item() == pytest.approx(loss, rel=1e-4)
    rate = Judge.load("smollm2").nats_per_byte([TEXT]).item()
    assert rate == pytest.approx(loss / len(TEXT), rel=1e-4)


@torch.no_grad()
def test_a_known_prefix_scores_the_same_through_the_kv_cache(engine):
    scorer = engine.energy.model
    tokens = torch.randint(20, 49_000, (2, 3, 24), generator=torch.Generator().manual_seed(0))
    tokens[:, :, :10] = tokens[:, :1, :10]
    before, after = scorer.hidden_after_prefix(tokens, 10)
    whole = scorer.hidden(tokens.flatten(0, 1)).unflatten(0, (2, 3))
    torch.testing.assert_close(before, whole[:, 0, :10], rtol=1e-3, atol=1e-3)
    torch.testing.assert_close(after, whole[:, :, 10:], rtol=1e-3, atol=1e-3)


def test_the_base_lies_in_memory_once(engine):
    base = dict(engine.energy.model.model.named_parameters())
    own = dict(engine.denoiser.model.named_parameters())
    assert all(own[name] is parameter for name, parameter in base.items())
    changed = sum(p.numel() for name, p in own.items() if name not in base)
    assert changed < 0.1 * sum(p.numel() for p in base.values())


def test_the_adapter_fills_a_gap_better_than_the_base_would(engine):
    """The bound on a sentence with every third token hidden, with the change and without it."""
    tokens = torch.tensor([engine.tokenizer.encode(TEXT)])
    xt = tokens.clone()
    xt[:, ::3] = engine.denoiser.mask_id

    @torch.no_grad()
    def nats():
        logits = engine.denoiser.logits(xt).log_softmax(-1)
        return -logits.gather(-1, tokens[..., None])[0, ::3].mean().item()

    adapted = nats()
    kept = {n: p.data for n, p in engine.denoiser.model.named_parameters() if n.endswith(".up")}
    try:
        for name in kept:
            engine.denoiser.model.get_parameter(name).data = torch.zeros_like(kept[name])
        unchanged = nats()
    finally:
        for name, data in kept.items():
            engine.denoiser.model.get_parameter(name).data = data
    assert adapted < unchanged - 1, (adapted, unchanged)


def test_it_generates_around_a_prompt(engine):
    config = GenerationConfig(steps=2, num_candidates=2, length=12)
    out = engine.generate(2, config=config, prompt="The old man", seed=1)
    assert all(text.startswith("The old man") for text in out.texts)
    assert (out.sequences != engine.denoiser.mask_id).all() and out.ess.shape == (2, 2)
