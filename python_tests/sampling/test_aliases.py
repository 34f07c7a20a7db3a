"""The names that other libraries give to fields of a configuration."""

import dataclasses

import pytest
from enumeration import TinyDenoiser
from tiny_models import table_denoiser

from edlm_engine import Engine, GenerationConfig
from edlm_engine.sampling.aliases import ALIASES, ORDER_NAMES
from edlm_engine.sampling.rules import ORDERS

FIELDS = {field.name for field in dataclasses.fields(GenerationConfig)}


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        # LLaDA's generate, Dream's diffusion_generate, diffusers, EDLM's sampling node
        (
            {"steps": 64, "gen_length": 32, "block_length": 8, "temperature": 0.5}
            | {"cfg_scale": 1.5, "remasking": "low_confidence"},
            {"steps": 64, "new_tokens": 32, "block_length": 8, "temperature": 0.5}
            | {"guidance": 1.5, "order": "confidence"},
        ),
        ({"remasking": "random"}, {"order": "ancestral"}),
        (
            {"max_new_tokens": 9, "steps": 5, "alg": "topk_margin", "top_p": 0.9, "top_k": 3},
            {"new_tokens": 9, "steps": 5, "order": "margin", "top_p": 0.9, "top_k": 3},
        ),
        ({"alg": "origin"}, {"order": "ancestral"}),
        ({"alg": "maskgit_plus"}, {"order": "confidence"}),
        ({"alg": "entropy"}, {"order": "entropy"}),
        (
            {"num_inference_steps": 7, "guidance_scale": 2.5, "suppress_tokens": [3]},
            {"steps": 7, "guidance": 1.5, "forbidden_tokens": (3,)},
        ),
        ({"guidance_scale": 1}, {"guidance": 0.0}),
        (
            {"is_size": 4, "is_temp": 0.5, "is_start": 1.0, "is_end": 0.25, "noise_removal": True},
            {"num_candidates": 4, "energy_temperature": 0.5, "window": (0.25, 1.0)}
            | {"final": "argmax"},
        ),
        (
            {"diffusion_steps": None, "nucleus_p": 0.8, "eta": 0.0, "max_length": 20},
            {"steps": None, "top_p": 0.8, "remask": 0.0, "length": 20},
        ),
        (
            {"sampling_steps": 3, "block_size": 4, "unmasking_strategy": "low_confidence_dynamic"}
            | {"confidence_threshold": 0.8},
            {"steps": 3, "block_length": 4, "order": "threshold", "threshold": 0.8},
        ),
    ],
)
def test_what_they_say_in_our_words(theirs, ours):
    assert GenerationConfig.from_dict(theirs) == GenerationConfig(**ours)


def test_the_table_names_what_there_is():
    assert {field for field, _ in ALIASES.values()} <= FIELDS
    assert not FIELDS & ALIASES.keys()
    assert set(ORDER_NAMES.values()) <= set(ORDERS)


@pytest.mark.parametrize(
    ("values", "error", "message"),
    [
        ({"step": 5}, ValueError, r"no field step \(nearest: steps or \w+\); it has steps, num_"),
        ({"top-p": 5}, ValueError, r"no field top-p \(nearest: top_p or top_k\);"),
        ({"num_inferense_steps": 5}, ValueError, r"\(nearest: num_inference_steps"),
        ({"zzz": 1, 5: 2}, ValueError, "config has no field 5, zzz; it has"),
        (
            {"steps": 5, "num_inference_steps": 5},
            ValueError,
            "not have both steps and num_inference_steps: one is steps",
        ),
        (
            {"max_new_tokens": 5, "gen_length": 5},
            ValueError,
            "not have both max_new_tokens and gen_length: one is new_tokens",
        ),
        ({"remasking": "none"}, ValueError, "remasking must be one of random, origin, low_conf"),
        ({"alg": ["entropy"]}, ValueError, r"alg must be one of .*, got \['entropy'\]"),
        ({"noise_removal": 3}, ValueError, "noise_removal must be one of True, greedy, False"),
        ({"guidance_scale": "2"}, TypeError, "guidance_scale must be a number, got '2'"),
        ({"is_start": 1.0}, ValueError, "must have both is_start and is_end"),
        ({"is_start": 1, "is_end": 0, "window": 1}, ValueError, "and no window beside them"),
        ({"num_inference_steps": 0}, ValueError, "steps must be >= 1, got 0"),
        ({"gen_length": 5, "length": 9}, ValueError, "new_tokens must be None where length is"),
        ({"new_tokens": 0}, ValueError, "new_tokens must be >= 1, got 0"),
        ({"new_tokens": 2.0}, TypeError, "new_tokens must be of type int"),
    ],
)
def test_what_is_refused(values, error, message):
    with pytest.raises(error, match=message):
        GenerationConfig.from_dict(values)


def test_wherever_a_configuration_is_taken():
    engine = Engine(table_denoiser(TinyDenoiser(vocab=4, length=3, mask_id=1)))
    ours = engine.generate(5, config={"steps": 2}, seed=3)
    theirs = engine.generate(5, config={"num_inference_steps": 2}, seed=3)
    assert theirs.sequences.tolist() == ours.sequences.tolist()
    assert GenerationConfig.from_json('{"is_size": 2}') == GenerationConfig(num_candidates=2)
    session = engine.session()
    session.add({"config": {"num_inference_steps": 2}, "seed": [int(ours.seeds[1])]})
    while session.step():
        pass
    assert session.finished()[0].generation.sequences[0].tolist() == ours.sequences[1].tolist()
