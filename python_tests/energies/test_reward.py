"""What a reward is given, what it may return, and that a sequence is the same in any batch."""

import math

import numpy as np
import pytest
import torch
from enumeration import TinyDenoiser
from tiny_models import table_denoiser

from edlm_engine import Engine, GenerationConfig, RewardEnergy

MASK = 1


class Decimal:
    def decode(self, ids):
        return "".join(map(str, ids))


def candidates(batch=3, number=4, length=5):
    x0 = torch.arange(batch * number * length).view(batch, number, length) % 10
    given = x0[:, 0], torch.zeros(batch, number), torch.ones(batch)
    return x0, given


@pytest.mark.parametrize("max_candidates", [1, 5, 64])
@pytest.mark.parametrize("kind", [torch.tensor, np.array, list])
def test_rewards_of_tokens_and_of_text(kind, max_candidates):
    x0, others = candidates()
    wanted = -0.5 * (x0[..., 0] * 10 + x0[..., 4])
    sizes = []

    def of_tokens(tokens):
        sizes.append(len(tokens))
        assert tokens.shape[1:] == (5,) and tokens.dtype == torch.int64
        return kind((tokens[:, 0] * 10 + tokens[:, 4]).tolist())

    def of_text(texts):
        sizes.append(len(texts))
        return kind([int(text[0] + text[-1]) for text in texts])

    for energy in (
        RewardEnergy(of_tokens, 0.5, max_candidates=max_candidates),
        RewardEnergy(of_text, 0.5, "text", Decimal(), max_candidates=max_candidates),
    ):
        got = energy(x0, *others)
        assert got.dtype == torch.float32 and torch.equal(got, wanted)
        assert sum(sizes) == 12 and max(sizes) == min(12, max_candidates)
        assert sizes == sorted(sizes, reverse=True)
        sizes.clear()


def test_a_function_that_writes_into_its_tokens_changes_nothing():
    x0, others = candidates()
    before = x0.clone()
    RewardEnergy(lambda tokens: tokens.zero_().sum(1))(x0, *others)
    assert torch.equal(x0, before)


def test_minus_infinity_is_impossible():
    x0, others = candidates()
    energy = RewardEnergy(lambda tokens: torch.where(tokens[:, 0] > 4, -math.inf, 1.0))(x0, *others)
    assert torch.equal(energy == math.inf, x0[..., 0] > 4) and (energy[energy < 5] == -1).all()


@pytest.mark.parametrize("on", ["tokens", "text"])
def test_a_sequence_is_the_same_in_any_batch(on):
    tiny = TinyDenoiser(vocab=4, length=3, mask_id=MASK)

    def reward(given):
        if on == "text":
            return [3.0 * text.count("2") for text in given]
        return 3.0 * (given == 2).sum(dim=1)

    energy = RewardEnergy(reward, on=on, tokenizer=Decimal(), max_candidates=7)
    engine = Engine(table_denoiser(tiny), energy)
    config = GenerationConfig(steps=3, num_candidates=4)
    whole = engine.generate(5, config=config, seed=[1, 2, 3, 4, 5])
    for b in range(5):
        alone = engine.generate(1, config=config, seed=[b + 1])
        assert torch.equal(whole.sequences[b], alone.sequences[0])
    session = engine.session()
    session.add({"config": config, "seed": [4]})
    session.step()
    session.add({"config": config, "seed": [2]})
    while session.step():
        pass
    for done, b in zip(session.finished(), (3, 1), strict=True):
        assert torch.equal(done.generation.sequences[0], whole.sequences[b])


@pytest.mark.parametrize(
    ("returned", "error", "message"),
    [
        (
            lambda tokens: torch.zeros(3),
            ValueError,
            r"one entry for each of 12 .*, got shape \[3\]",
        ),
        (lambda tokens: 1.0, ValueError, r"one entry for each of 12 candidates, got shape \[\]"),
        (lambda tokens: torch.zeros(12, 2), ValueError, r"numbers \[12\].* got float32 \[12, 2\]"),
        (lambda tokens: torch.zeros(12) * 1j, ValueError, r"numbers \[12\].* complex64 \[12\]"),
        (lambda tokens: None, TypeError, "a tensor, an array or a list of numbers, got NoneType"),
        (lambda tokens: ["x"] * 12, TypeError, "a list of numbers, got list"),
        (lambda tokens: [math.nan] * 12, ValueError, "numbers below [+]inf, got nan"),
        (lambda tokens: [math.inf] * 12, ValueError, "numbers below [+]inf, got inf"),
    ],
)
def test_what_a_reward_may_not_return(returned, error, message):
    x0, others = candidates()
    with pytest.raises(error, match=message):
        RewardEnergy(returned)(x0, *others)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"fn": 3}, TypeError, "fn must be callable, got int"),
        ({"scale": math.inf}, ValueError, "scale must be finite, got inf"),
        ({"scale": "1"}, TypeError, "scale must be of type float, got '1'"),
        ({"on": "words"}, ValueError, 'on must be "tokens" or "text", got \'words\''),
        ({"on": "text"}, TypeError, "tokenizer must have a method decode, .* got NoneType"),
        ({"max_candidates": 0}, ValueError, "max_candidates must be >= 1, got 0"),
        ({"max_candidates": 2.0}, TypeError, "max_candidates must be of type int, got 2.0"),
    ],
)
def test_bad_arguments(options, error, message):
    with pytest.raises(error, match=message):
        RewardEnergy(**{"fn": len, **options})
