"""The options of a generation as a dict and as JSON. Their rules: test_engine.py."""

import dataclasses

import pytest
from enumeration import TinyDenoiser
from tiny_models import table_denoiser

from edlm_engine import Engine, GenerationConfig

CONFIGS = [
    GenerationConfig(),
    GenerationConfig(steps=None, window=(0.25, 0.5), length=7, final="argmax", top_p=0.3),
]


@pytest.mark.parametrize("config", CONFIGS)
def test_json_keeps_it(config):
    assert GenerationConfig.from_json(config.to_json()) == config
    assert GenerationConfig.from_dict(dataclasses.asdict(config)) == config


def test_fields_may_be_left_out():
    config = GenerationConfig.from_json('{"steps": 5, "window": [0, 0.5]}')
    assert config == GenerationConfig(steps=5, window=(0, 0.5))
    assert hash(config) == hash(GenerationConfig(steps=5, window=(0, 0.5)))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"steps": ', "config is not JSON"),
        ("[" * 100_000, "config is not JSON"),
        ("[1]", "config must be a JSON object, got list"),
        ('{"step": 5}', "config has no field step .nearest: steps.*; it has steps, num_candidates"),
        ('{"steps": 0}', "steps must be >= 1, got 0"),
    ],
)
def test_wrong_json_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        GenerationConfig.from_json(text)


def test_generate_takes_a_dict():
    engine = Engine(table_denoiser(TinyDenoiser(vocab=4, length=3, mask_id=1)))
    given = engine.generate(5, config={"steps": 2, "temperature": 0.5}, seed=3)
    same = engine.generate(5, config=GenerationConfig(steps=2, temperature=0.5), seed=3)
    assert given.sequences.tolist() == same.sequences.tolist()
    with pytest.raises(ValueError, match="config has no field K, n"):
        engine.generate(config={"n": 1, "K": 2})
    with pytest.raises(TypeError, match="config must be a GenerationConfig or a dict, got 'fast'"):
        engine.generate(config="fast")
