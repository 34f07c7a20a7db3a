"""What is asked: a length by new tokens, seeds by generators, many generations at once."""

import pytest
import torch

from edlm_engine import CallableDenoiser, Engine, GenerationConfig, Request

pytestmark = pytest.mark.usefixtures("single_thread")
VOCAB, LONGEST, MASK = 6, 12, 1


def logits(xt, sigma):
    """Differ with every known token and every length."""
    return (xt.cumsum(1)[..., None] * torch.arange(VOCAB) % 5 / 2 + xt.shape[1] % 3).float()


@pytest.fixture(scope="module")
def engine():
    denoiser = CallableDenoiser(logits, mask_id=MASK, vocab_size=VOCAB, length=LONGEST)
    return Engine(denoiser, lambda x0, xt, log_q, t: x0.float().cos().sum(2))


def config(**fields):
    return GenerationConfig(steps=4, num_candidates=2, **fields)


# New tokens


@pytest.mark.parametrize(
    ("prompt", "suffix", "length"),
    [
        (None, None, 3),
        ([2, 3], None, 5),
        ([[2], [2, 3, 4]], None, 6),
        ([[2], [2, 3, 4]], [0], 7),
        ([[2], [2, 3, 4]], [[0, 0, 0, 0], []], 8),
    ],
)
def test_new_tokens_beside_the_known_ones(engine, prompt, suffix, length):
    given = {"prompt": prompt, "suffix": suffix, "seed": 5}
    out = engine.generate(2, config=config(new_tokens=3), **given)
    assert out.sequences.shape == (2, length)
    same = engine.generate(2, config=config(length=length), **given)
    assert torch.equal(out.sequences, same.sequences)


def test_new_tokens_in_a_session_are_each_ones_own(engine):
    requests = [
        {"config": {"steps": 4, "new_tokens": 3}, "prompt": prompt, "seed": 7}
        for prompt in ([2], [2, 3, 4], [5, 2, 2])
    ]
    outs = engine.generate_each(requests)
    assert [out.sequences.shape[1] for out in outs] == [4, 6, 6]
    for out, request in zip(outs, requests, strict=True):
        assert torch.equal(out.sequences, engine.generate(1, **request).sequences)
    session = engine.session(max_tokens=9)
    session.add(requests[0])
    with pytest.raises(RuntimeError, match="no room for 6"):
        session.add(requests[1])


def test_new_tokens_for_a_denoiser_of_any_length():
    denoiser = CallableDenoiser(logits, mask_id=MASK, vocab_size=VOCAB, length=LONGEST)
    denoiser.any_length = True
    engine = Engine(denoiser)
    with pytest.raises(ValueError, match="length or new_tokens must be given"):
        engine.generate()
    assert engine.generate(config={"max_new_tokens": 4}, prompt=[2]).sequences.shape == (1, 5)


def test_what_new_tokens_cannot_be(engine):
    with pytest.raises(ValueError, match="got 13, 2 known tokens and new_tokens"):
        engine.generate(config=config(new_tokens=11), prompt=[2, 3])
    with pytest.raises(ValueError, match="canvas has its length, got new_tokens 3 as well"):
        engine.generate(config=config(new_tokens=3), canvas=torch.full((1, LONGEST), MASK))


# Generators


def test_a_generator_advances_and_repeats(engine):
    generator = torch.Generator().manual_seed(3)
    first = engine.generate(20, config=config(), generator=generator)
    second = engine.generate(20, config=config(), generator=generator)
    assert len({*first.seeds.tolist(), *second.seeds.tolist()}) == 40
    assert not torch.equal(first.sequences, second.sequences)
    generator.manual_seed(3)
    again = engine.generate(20, config=config(), generator=generator)
    assert torch.equal(first.sequences, again.sequences)
    by_seed = engine.generate(20, config=config(), seed=first.seeds)
    assert torch.equal(first.sequences, by_seed.sequences)
    assert (first.seeds < 0).any() and (first.seeds.abs() > 2**60).any()


def test_a_generator_for_each_sequence(engine):
    def generators():
        return [torch.Generator().manual_seed(seed) for seed in (4, 5, 6)]

    whole = engine.generate(3, config=config(), generator=generators())
    for b, generator in enumerate(generators()):
        alone = engine.generate(1, config=config(), generator=generator)
        assert torch.equal(alone.sequences[0], whole.sequences[b])


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"generator": 5}, TypeError, "generator must be a torch.Generator or one per sequence"),
        ({"generator": []}, TypeError, r"one per sequence, got \[\]"),
        ({"generator": [torch.Generator()]}, ValueError, "hold 2 generators, .* got 1"),
        ({"generator": torch.Generator(), "seed": 5}, ValueError, "without a seed, got both"),
        ({"generator": torch.Generator(), "seed": [0, 1]}, ValueError, "got both"),
    ],
)
def test_what_a_generator_cannot_be(engine, options, error, message):
    with pytest.raises(error, match=message):
        engine.generate(2, config=config(), **options)


# Many requests


@pytest.mark.parametrize("batch_size", [None, 1, 3])
def test_each_request_is_what_it_is_alone(engine, batch_size):
    requests = [
        Request(
            config={"steps": 1 + i % 4, "length": 5 + i % 3, "order": order, "num_candidates": 2},
            seed=i,
            prompt=[2] * (i % 4),
        )
        for i, order in enumerate(["ancestral", "confidence", "leftmost"] * 3)
    ]
    requests.append(Request(prompt=[2] * LONGEST))  # nothing to do
    running, batches = [], []

    def counted(xt, sigma):
        running.append(len(xt))
        return logits(xt, sigma)

    denoiser = CallableDenoiser(counted, mask_id=MASK, vocab_size=VOCAB, length=LONGEST)
    outs = Engine(denoiser, engine.energy).generate_each(iter(requests), batch_size=batch_size)
    batches.append(max(running))
    assert batches[0] <= (batch_size or 10) and len(outs) == 10
    for out, request in zip(outs, requests, strict=True):
        alone = engine.generate(1, **vars(request))
        assert torch.equal(out.sequences, alone.sequences) and torch.equal(out.nfe, alone.nfe)


def test_many_requests_that_fail(engine):
    assert engine.generate_each([]) == []
    with pytest.raises(ValueError, match="steps must be >= 1, got 0"):
        engine.generate_each([{}, {"config": {"steps": 0}}])
    with pytest.raises(ValueError, match="max_sequences must be >= 1, got 0"):
        engine.generate_each([{}], batch_size=0)

    def bad(xt, sigma):
        return logits(xt, sigma).masked_fill((xt == 5).any(1)[:, None, None], torch.nan)

    denoiser = CallableDenoiser(bad, mask_id=MASK, vocab_size=VOCAB, length=LONGEST)
    with pytest.raises(RuntimeError, match="NaN"):
        Engine(denoiser).generate_each([{}, {"prompt": [5]}])
