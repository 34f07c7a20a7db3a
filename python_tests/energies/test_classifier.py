"""Classifiers as energies: any function, and a sequence classifier of transformers."""

import pytest
import torch
from tiny_llama import WORDS, tiny_tokenizer
from transformers import BertConfig, BertForSequenceClassification, PreTrainedTokenizerFast

from edlm_engine import ClassifierEnergy

TOKENIZER = tiny_tokenizer()
LABELS = {0: "dull", 1: "glad", 2: "sad"}


def candidates(batch=3, number=4, length=5):
    generator = torch.Generator().manual_seed(0)
    x0 = torch.randint(2, len(WORDS), (batch, number, length), generator=generator)
    return x0, (x0[:, 0], torch.zeros(batch, number), torch.ones(batch))


def model(**options):
    torch.manual_seed(1)
    sizes = {"hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 2}
    config = BertConfig(
        vocab_size=len(WORDS),
        num_attention_heads=2,
        id2label=LABELS,
        label2id={name: number for number, name in LABELS.items()},
        initializer_range=1.0,
        **sizes,
        **options,
    )
    return BertForSequenceClassification(config).eval()


def reads():
    return PreTrainedTokenizerFast(tokenizer_object=tiny_tokenizer(), pad_token="<unused>")


@torch.inference_mode()
@pytest.mark.parametrize("max_candidates", [1, 5, 64])
@pytest.mark.parametrize("label", [1, "glad"])
def test_a_classifier_of_transformers(label, max_candidates):
    classifier, x0_and = model(), candidates()
    x0, others = x0_and
    energy = ClassifierEnergy.from_transformers(
        classifier, reads(), label, 2.0, tokenizer=TOKENIZER, max_candidates=max_candidates
    )
    got = energy(x0, *others)
    wanted = classifier(input_ids=x0.flatten(0, 1)).logits.log_softmax(-1)[:, 1].view(3, 4)
    torch.testing.assert_close(got, -2 * wanted, rtol=1e-5, atol=1e-5)
    assert got.dtype == torch.float32 and wanted.std() > 0.1


def test_logits_and_log_probabilities_are_the_same():
    x0, others = candidates()
    logits = torch.randn(len(WORDS), 3, generator=torch.Generator().manual_seed(2))

    def energy(of_token):
        return ClassifierEnergy(lambda tokens: of_token[tokens[:, 0]], 2, on="tokens")(x0, *others)

    wanted = -logits.double().log_softmax(-1)[x0[..., 0], 2].float()
    assert torch.equal(energy(logits), wanted)
    torch.testing.assert_close(energy(logits.log_softmax(-1)), wanted)
    with pytest.raises(ValueError, match="log-probabilities or logits, got probabilities"):
        energy(logits.softmax(-1))


@pytest.mark.parametrize("shape", [(12,), (12, 1), (12, 2), (12, 3, 1)])
def test_outputs_of_another_shape(shape):
    x0, others = candidates()
    energy = ClassifierEnergy(lambda tokens: torch.zeros(shape), 2, on="tokens")
    with pytest.raises(ValueError, match=r"real numbers \[12, C\] with C >= 2 labels, label 2"):
        energy(x0, *others)
    with pytest.raises(ValueError, match=r"got int64 \[12, 3\]"):
        ClassifierEnergy(lambda tokens: tokens[:, :3], 2, on="tokens")(x0, *others)


def test_bad_arguments():
    given = {"classifier_tokenizer": reads(), "tokenizer": TOKENIZER}
    with pytest.raises(ValueError, match="label must be one of dull, glad, sad, got 'angry'"):
        ClassifierEnergy.from_transformers(model(), label="angry", **given)
    for kind in ("multi_label_classification", "regression"):
        with pytest.raises(ValueError, match=f"must choose one of several labels, got {kind}"):
            ClassifierEnergy.from_transformers(model(problem_type=kind), label=0, **given)
    for label, error in ((-1, ValueError), (True, TypeError), ("glad", TypeError)):
        with pytest.raises(error, match="label must be"):
            ClassifierEnergy(len, label, on="tokens")
