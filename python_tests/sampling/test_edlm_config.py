from types import SimpleNamespace

import pytest

from edlm_engine import GenerationConfig
from edlm_engine.sampling.edlm_config import edlm_carry_over, edlm_window

# What the configuration of the published code says of sampling, and its energy's.
RELEASED = {
    "predictor": "ddpm_cache",
    "steps": 128,
    "noise_removal": True,
    "num_sample_batches": 2,
    "num_sample_log": 2,
    "semi_ar": False,
    "stride_length": 1,
    "num_strides": 1,
    "is_size": 2,
    "is_start": 0.6,
    "is_end": 0.4,
    "is_temp": 1,
    "ar_carry_over": True,
}


class Node(dict):
    """A node of a library whose keys are fixed: asking for others by `get` is an error."""

    def get(self, *_):
        raise KeyError


@pytest.mark.parametrize(
    "wrap",
    [
        lambda x: x,
        lambda x: {"sampling": x, "mode": "sample_eval"},
        lambda x: SimpleNamespace(**x),
        lambda x: SimpleNamespace(sampling=SimpleNamespace(**x)),
        lambda x: Node(sampling=Node(x)),
    ],
    ids=["mapping", "with node", "attributes", "attributes with node", "fixed keys"],
)
def test_the_released_configuration(wrap):
    config = GenerationConfig.from_edlm(wrap(RELEASED))
    assert config == GenerationConfig(
        steps=128, num_candidates=2, window=(0.4, 0.6), energy_temperature=1, final="argmax"
    )
    assert edlm_carry_over(wrap(RELEASED)) and edlm_window(wrap(RELEASED)) == (0.4, 0.6)


def test_each_name():
    config = GenerationConfig.from_edlm(
        RELEASED | {"is_start": 1.0, "is_end": 0.8, "is_size": 16, "is_temp": 0.5, "steps": 7}
    )
    assert config == GenerationConfig(
        steps=7, num_candidates=16, window=(0.8, 1.0), energy_temperature=0.5, final="argmax"
    )
    assert not edlm_carry_over({"ar_carry_over": False})


@pytest.mark.parametrize(
    ("start", "end", "window"),
    [(0.4, 0.6, 0.0), (2.0, -1.0, (0.0, 1.0)), (3.0, 2.0, 0.0), (-1.0, -2.0, 0.0)],
)
def test_windows(start, end, window):
    config = GenerationConfig.from_edlm(RELEASED | {"is_start": start, "is_end": end})
    assert config.window == window


def test_without_an_energy():
    """MDLM's, ReMDM's and DUO's own."""
    mdlm = {"predictor": "ddpm_cache", "steps": 1000, "noise_removal": False}
    assert GenerationConfig.from_edlm(mdlm) == GenerationConfig(steps=1000, num_candidates=1)
    remdm = mdlm | {"nucleus_p": 0.9, "sampler": "mdlm", "noise_removal": True}
    assert GenerationConfig.from_edlm(remdm) == GenerationConfig(
        steps=1000, num_candidates=1, top_p=0.9, final="argmax"
    )
    duo = {"predictor": "ancestral_cache", "steps": 32, "p_nucleus": 0.8, "psi": None}
    for removal, final in (("ancestral", "sample"), ("greedy", "argmax"), ("none", "sample")):
        config = GenerationConfig.from_edlm(duo | {"noise_removal": removal})
        assert config == GenerationConfig(steps=32, num_candidates=1, top_p=0.8, final=final)


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({}, "config must have some of steps, is_size"),
        (None, "config must have some of steps"),
        (RELEASED | {"predictor": "analytic"}, "predictor must be one of .*got 'analytic'"),
        (RELEASED | {"predictor": "psi"}, "predictor must be one of .*got 'psi'"),
        (RELEASED | {"noise_removal": "half"}, "noise_removal must be one of .*got 'half'"),
        (RELEASED | {"noise_removal": 1}, "noise_removal must be one of .*got 1"),
        (RELEASED | {"is_size": 0}, "num_candidates must be >= 1, got 0"),
        (RELEASED | {"is_temp": 0.0}, "energy_temperature must be in"),
    ],
)
def test_refused(config, words):
    with pytest.raises(ValueError, match=words):
        GenerationConfig.from_edlm(config)
