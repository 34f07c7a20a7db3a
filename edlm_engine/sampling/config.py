"""The options of one generation."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import Any, Literal


@dataclass(frozen=True)
class GenerationConfig:
    """How to sample. Checked at construction: ValueError, or TypeError for a wrong type.

    `Engine.generate` takes a dict of these fields for it, and `to_json` and `from_json` keep it as
    text.

    steps: N, the number of evenly spaced time steps; None is continuous time, one position at a
        time (first-hitting sampler).
    num_candidates: K complete sequences drawn per energy step; 1 is plain MDLM.
    window: the energy is used at times t in [1 - window, 1], nowhere if 0; or at t in [low, high],
        given as a pair. A transition from t_{i-1} to t_i counts as t_{i-1}.
    temperature, top_p: of the denoiser's distribution; `log_q` is the log-probability under the
        distribution so changed.
    energy_temperature: candidates are chosen with probability softmax(-energy / it). Temperatures
        lie in [1e-30, 1e30].
    batch_invariant: evaluate every model on one sequence at a time and on one CPU thread, so that
        a sequence repeats token for token in any batch; slower.
    final: how positions still masked at t_N are filled: by a draw, or by the most probable token.
        Continuous time leaves none.
    length: positions per sequence; None is the denoiser's own length.
    """

    steps: int | None = 128
    num_candidates: int = 8
    window: float | tuple[float, float] = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    energy_temperature: float = 1.0
    batch_invariant: bool = False
    final: Literal["sample", "argmax"] = "sample"
    length: int | None = None

    def __post_init__(self):
        for name in ("steps", "num_candidates", "length"):
            value = getattr(self, name)
            if value is not None or name == "num_candidates":
                _check_type(name, value, int)
                _check(value >= 1, name, ">= 1", value)
        for name in ("temperature", "energy_temperature"):
            value = getattr(self, name)
            _check_type(name, value, Real)
            _check(1e-30 <= value <= 1e30, name, "in [1e-30, 1e30]", value)
        _check_type("top_p", self.top_p, Real)
        _check(0 < self.top_p <= 1, "top_p", "in (0, 1]", self.top_p)
        _check(self.final in ("sample", "argmax"), "final", '"sample" or "argmax"', self.final)
        _check_type("batch_invariant", self.batch_invariant, bool)
        self._check_window()

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> GenerationConfig:
        """The configuration with these fields, the others at their defaults.

        Raises ValueError for a field that there is not, naming those there are.
        """
        known = [field.name for field in fields(cls)]
        unknown = sorted(str(name) for name in values if name not in known)
        if unknown:
            raise ValueError(f"config has no field {', '.join(unknown)}; it has {', '.join(known)}")
        return cls(**values)

    @classmethod
    def from_json(cls, text: str) -> GenerationConfig:
        """The inverse of `to_json`; fields may be left out. ValueError for anything else."""
        try:
            values = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"config is not JSON: {error}") from error
        if not isinstance(values, dict):
            raise ValueError(f"config must be a JSON object, got {type(values).__name__}")
        return cls.from_dict(values)

    def to_json(self) -> str:
        """All fields as one JSON object."""
        return json.dumps(asdict(self))

    @property
    def energy_times(self) -> tuple[float, float] | None:
        """(low, high): the times at which an energy is used; None if at none."""
        if isinstance(self.window, (tuple, list)):
            low, high = self.window
            return low, high
        return (1 - self.window, 1.0) if self.window > 0 else None

    def _check_window(self):
        if isinstance(self.window, Real):
            _check(0 <= self.window <= 1, "window", "in [0, 1]", self.window)
            return
        if not (isinstance(self.window, (tuple, list)) and len(self.window) == 2):
            raise TypeError(f"window must be a number or a pair (low, high), got {self.window!r}")
        for value in self.window:
            _check_type("window", value, Real)
        low, high = self.window
        _check(0 <= low <= high <= 1, "window", "(low, high), 0 <= low <= high <= 1", self.window)
        object.__setattr__(self, "window", (low, high))  # JSON has lists only


def as_config(config: GenerationConfig | Mapping[str, Any] | None) -> GenerationConfig:
    """What `Engine.generate` was given; TypeError if it is no configuration."""
    if config is None:
        return GenerationConfig()
    if isinstance(config, Mapping):
        return GenerationConfig.from_dict(config)
    if not isinstance(config, GenerationConfig):
        raise TypeError(f"config must be a GenerationConfig or a dict, got {config!r}")
    return config


def _check(good: bool, name: str, rule: str, value: object) -> None:
    if not good:
        raise ValueError(f"{name} must be {rule}, got {value!r}")


def _check_type(name: str, value: object, kind: type) -> None:
    # A truth value counts as no number, though Python thinks so.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{name} must be of type {kind.__name__}, got {value!r}")
