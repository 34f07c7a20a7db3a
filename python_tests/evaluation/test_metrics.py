import math

import pytest
import torch
from tiny_models import TableAR

from edlm_engine.evaluation.metrics import (
    distinct,
    effective_sample_size,
    generative_perplexity,
    repetition,
    token_entropy,
)


def test_effective_sample_size():
    log_weights = torch.tensor([[0.0, 0.0, 0.0, 0.0], [5000.0, 0.0, 0.0, -math.inf]])
    assert effective_sample_size(log_weights).tolist() == [4.0, 1.0]
    pair = torch.tensor([math.log(3.0), 0.0])
    assert abs(effective_sample_size(pair) - 16 / 10) < 1e-6
    assert effective_sample_size(log_weights[:1].T, dim=0).tolist() == [4.0]
    bad = torch.tensor([[-math.inf, -math.inf], [0.0, math.nan]])
    assert effective_sample_size(bad).isnan().all()


def test_effective_sample_size_stays_in_range():
    scale = torch.logspace(-3, 3, 100)[:, None]
    log_weights = torch.randn(100, 7, generator=torch.Generator().manual_seed(0)) * scale
    ess = effective_sample_size(log_weights)
    assert ess.min() >= 1 and ess.max() <= 7 and ess.min() < 1.01 and ess.max() > 6.9


def test_token_entropy_in_nats():
    tokens = torch.tensor([[3, 3, 3, 3], [0, 1, 2, 3], [5, 7, 5, 5]])
    want = [0.0, math.log(4), -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))]
    assert torch.allclose(token_entropy(tokens), torch.tensor(want, dtype=torch.float64))
    with pytest.raises(ValueError, match=r"tokens must have shape \[B, L\]"):
        token_entropy(tokens[0])


@pytest.mark.parametrize("first_position", [0, 1])
@pytest.mark.parametrize("max_tokens", [1, 7, 16_384])
def test_generative_perplexity(first_position, max_tokens):
    ar = TableAR(3, 4, first_position=first_position)
    sequences = torch.randint(3, (5, 4), generator=torch.Generator().manual_seed(0))
    by_hand = [ar.log_probs(x)[first_position:].sum() for x in sequences.tolist()]
    want = math.exp(-sum(by_hand) / (5 * (4 - first_position)))
    got = generative_perplexity(sequences, ar, max_tokens=max_tokens)
    assert abs(got / want - 1) < 1e-6


@pytest.mark.parametrize("shape", [(0, 4), (3, 1), (4,)])
def test_generative_perplexity_needs_scored_tokens(shape):
    with pytest.raises(ValueError, match="sequences must have shape"):
        generative_perplexity(
            torch.zeros(shape, dtype=torch.int64), TableAR(3, 4, first_position=1)
        )


def test_repetition_and_distinct_ngrams():
    tokens = torch.tensor([[1, 2, 1, 2, 1], [1, 2, 3, 4, 5]])
    assert repetition(tokens, 1).tolist() == pytest.approx([3 / 5, 0])
    assert repetition(tokens, 2).tolist() == [0.5, 0.0]
    assert repetition(tokens, 5).tolist() == [0.0, 0.0]
    assert distinct(tokens, 2) == 5 / 8  # 12 21 | 12 23 34 45
    assert distinct(tokens[:1], 1) == 2 / 5
    for bad in (0, 6):
        with pytest.raises(ValueError, match=r"tokens must have shape \[B, L\]"):
            repetition(tokens, bad)
