"""`custom_generate` of transformers on a small random masked language model."""

import pytest
import torch

transformers = pytest.importorskip("transformers")

from edlm_engine.hosts.transformers import FOLDER, generate  # noqa: E402

VOCAB, MASK = 24, 3
pytestmark = pytest.mark.usefixtures("single_thread")


@pytest.fixture(scope="module")
def model():
    class Masked(transformers.BertForMaskedLM, transformers.GenerationMixin):
        pass

    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.BertConfig(
        vocab_size=VOCAB, intermediate_size=16, max_position_embeddings=16, **sizes
    )
    config.mask_token_id = MASK
    return Masked(config).eval()


@pytest.fixture
def by_folder(model, monkeypatch, tmp_path):
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path))
    return lambda ids, **settings: model.generate(
        ids, custom_generate=FOLDER, trust_remote_code=True, **settings
    )


IDS = torch.tensor([[5, 6, MASK, 7], [8, MASK, MASK, 9], [5, 6, 7, 8]])


def test_generate_takes_it(by_folder, model):
    out = by_folder(IDS, max_new_tokens=3, seeds=[1, 2, 3], return_dict_in_generate=True)
    tokens, known = out.sequences, torch.cat([IDS, IDS.new_full((3, 3), MASK)], dim=1)
    assert tokens.shape == (3, 7) and (tokens != MASK).all()
    assert torch.equal(tokens[known != MASK], known[known != MASK])
    assert (out.record.log_q[known == MASK] < 0).all()
    # A row has its seed, alone or in a batch; and so it is by the function.
    alone = by_folder(IDS[1:2], max_new_tokens=3, seeds=[2], steps=5)
    assert torch.equal(alone[0], tokens[1])
    assert torch.equal(generate(model, IDS, max_new_tokens=3, seeds=[1, 2, 3]), tokens)


def test_log_probabilities_are_the_model_s(by_folder, model):
    """One step reveals all at once, so each draw's law is the model's on the masked canvas."""
    out = by_folder(IDS[:2], seeds=4, steps=1, temperature=0.5, return_dict_in_generate=True)
    with torch.no_grad():
        logits = model(input_ids=IDS[:2]).logits / 0.5
    logits[..., MASK] = -torch.inf
    free = IDS[:2] == MASK
    law = logits.log_softmax(dim=-1).gather(2, out.sequences[..., None])[..., 0]
    torch.testing.assert_close(out.record.log_q[free], law[free], rtol=0, atol=1e-4)


@pytest.mark.parametrize(
    ("settings", "wanted"),
    [
        ({"num_beams": 4}, "num_beams"),
        ({"attention_mask": torch.tensor([[1, 1, 1, 0]] * 3)}, "rows must have one length"),
    ],
)
def test_what_it_does_not_do_is_refused(by_folder, settings, wanted):
    with pytest.raises((ValueError, TypeError), match=wanted):
        by_folder(IDS, **settings)


def test_a_mask_must_be_known(model):
    class Unknown(torch.nn.Module):
        config = type("Config", (), {"vocab_size": VOCAB})

    with pytest.raises(ValueError, match="mask_id must be given"):
        generate(Unknown(), IDS)
    with pytest.raises(ValueError, match=r"input_ids must be int64 \[B, L\]"):
        generate(model, IDS[0])
