"""Settings of a training run."""

import dataclasses

import pytest

from edlm_engine.training.config import TrainConfig, learning_rate


def test_learning_rate_rises_then_falls():
    config = TrainConfig(data=("x",), out="y", steps=100, warmup=10, lr=1.0)
    rates = [learning_rate(config, step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1) and max(rates) == 1.0 and rates.index(1.0) in (9, 10)
    assert rates[9:] == sorted(rates[9:], reverse=True) and 0.009 < rates[-1] < 0.02


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("steps", 0),
        ("batch_size", 0),
        ("lr", 0.0),
        ("ema", 1.0),
        ("optimizer", "sgd"),
        ("precision", "fp16"),
        ("threads", 0),
        ("data", ()),
        ("length", 1),
        ("seed", -1),
    ],
)
def test_bad_settings_are_named(config, field, value):
    with pytest.raises(ValueError, match=f"{field} must be .*got"):
        dataclasses.replace(config, **{field: value})
