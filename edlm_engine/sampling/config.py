"""The options of one generation."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, fields
from numbers import Real
from typing import Any, Literal

PLANNED = ("ancestral", "leftmost")
ORDERS = (
    *PLANNED,
    "confidence",
    "margin",
    "entropy",
    "threshold",
    "entropy_bounded",
    "resolved",
)
CORRECTIONS = ("joint", "local", "speculative", "smc", "gibbs")


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
    temperature, top_k, top_p, min_p: of the denoiser's distribution, applied in this order (see
        `edlm_engine.ops.sample_candidates`); `log_q` is the log-probability under the distribution
        so changed. 0 turns top_k and min_p off, 1 top_p.
    logit_bias: {token: what is added to its logit}, before the temperature; -inf forbids it.
    allowed_tokens: the only ones that may be drawn; None is all. forbidden_tokens: never drawn.
    energy_temperature: candidates are chosen with probability softmax(-energy / it). Temperatures
        lie in [1e-30, 1e30].
    batch_invariant: evaluate every model on one sequence at a time and on one CPU thread, so that
        a sequence repeats token for token in any batch; slower.
    final: how positions still masked at t_N are filled: by a draw, or by the most probable token.
        Continuous time leaves none.
    length: positions per sequence; None is the denoiser's own length.
    order: which positions a step reveals (a file each in `edlm_engine.sampling.orders`).
        "ancestral", the exact reverse process of the diffusion, and "leftmost" are known before any
        model runs; "confidence", "margin" and "entropy" reveal the surest positions, as equally
        many a step as may be; "threshold" and "entropy_bounded" as many as are sure enough,
        whatever `steps` says; "resolved" what one call of the AR model settles, for the
        correction "speculative". The adaptive ones wait for the device once a step.
    block_length: reveal block after block of this many positions, from the first free one on, each
        with its share of the steps, at least one (semi-autoregressive); None is one block.
    remask: eta of ReMDM: in each step a revealed token is hidden again with at most this
        probability. For the ancestral order in discrete time, without blocks.
    threshold: of the order "threshold": the least probability that is revealed at once.
    entropy_bound: of "entropy_bounded", in nats.
    guidance: scale g of classifier-free guidance: logits are (1 + g) times those given the known
        tokens minus g times those with the known tokens masked. Two evaluations a step.
    record: keep what was drawn and how likely it was (`Generation.record`).
    correction: how the energy corrects the draws (a file each in
        `edlm_engine.sampling.corrections`, whose docstrings state the laws): "joint", the paper's K
        complete candidates; "local", candidates that differ in what the step reveals;
        "speculative", the AR model's own law left to right from the denoiser's drafts; "smc", K
        particles with weights; "gibbs", sweeps of them. All but "joint" need a planned order.
    shared_rests: of "local": how many rests the candidates share.
    ess_threshold: of "smc": resample below this part of K.
    ess_target: of "joint" and "local": score candidates only until the effective sample size is
        this, at most K; the host then waits for the device.
    sweeps: of "gibbs": how many follow the first.
    """

    steps: int | None = 128
    num_candidates: int = 8
    window: float | tuple[float, float] = 1.0
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    logit_bias: Mapping[int, float] | tuple[tuple[int, float], ...] = ()
    allowed_tokens: tuple[int, ...] | None = None
    forbidden_tokens: tuple[int, ...] = ()
    energy_temperature: float = 1.0
    batch_invariant: bool = False
    final: Literal["sample", "argmax"] = "sample"
    length: int | None = None
    order: str = "ancestral"
    block_length: int | None = None
    remask: float = 0.0
    threshold: float = 0.9
    entropy_bound: float = 0.1
    guidance: float = 0.0
    record: bool = False
    correction: str = "joint"
    shared_rests: int = 1
    ess_threshold: float = 0.5
    ess_target: float | None = None
    sweeps: int = 1

    def __post_init__(self):
        for name in ("steps", "num_candidates", "length", "block_length"):
            value = getattr(self, name)
            if value is not None or name == "num_candidates":
                _check_type(name, value, int)
                _check(value >= 1, name, ">= 1", value)
        _check_type("top_k", self.top_k, int)
        _check(self.top_k >= 0, "top_k", ">= 0", self.top_k)
        _check_type("min_p", self.min_p, Real)
        _check(0 <= self.min_p <= 1, "min_p", "in [0, 1]", self.min_p)
        self._check_tokens()
        for name in ("temperature", "energy_temperature"):
            value = getattr(self, name)
            _check_type(name, value, Real)
            _check(1e-30 <= value <= 1e30, name, "in [1e-30, 1e30]", value)
        _check_type("top_p", self.top_p, Real)
        _check(0 < self.top_p <= 1, "top_p", "in (0, 1]", self.top_p)
        _check(self.final in ("sample", "argmax"), "final", '"sample" or "argmax"', self.final)
        for name in ("batch_invariant", "record"):
            _check_type(name, getattr(self, name), bool)
        for name, low, high in (
            ("remask", 0, 1),
            ("threshold", 0, 1),
            ("entropy_bound", 0, 1e30),
            ("guidance", -1e30, 1e30),
        ):
            value = getattr(self, name)
            _check_type(name, value, Real)
            _check(low <= value <= high, name, f"in [{low:g}, {high:g}]", value)
        _check(self.threshold > 0, "threshold", "in (0, 1]", self.threshold)
        self._check_order()
        self._check_correction()
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

    def _check_tokens(self):
        """Tokens as tuples of integers, the bias as sorted pairs: JSON has lists and text only."""
        bias = self.logit_bias
        if not isinstance(bias, (Mapping, list, tuple)):
            raise TypeError(f"logit_bias must be a dict of tokens and numbers, got {bias!r}")
        pairs = list(bias.items() if isinstance(bias, Mapping) else bias)
        if not all(isinstance(pair, (list, tuple)) and len(pair) == 2 for pair in pairs):
            raise TypeError(f"logit_bias must be a dict of tokens and numbers, got {bias!r}")
        try:
            pairs = [(int(token), value) for token, value in pairs]
        except (TypeError, ValueError) as error:
            raise TypeError(f"logit_bias must have tokens as keys, got {bias!r}") from error
        for token, value in pairs:
            _check_type("logit_bias", value, Real)
            _check(value < float("inf"), "logit_bias", "below +inf and not NaN", value)
            _check(token >= 0, "logit_bias", "of tokens >= 0", token)
        object.__setattr__(self, "logit_bias", tuple(sorted((t, float(v)) for t, v in pairs)))
        for name in ("allowed_tokens", "forbidden_tokens"):
            tokens = getattr(self, name)
            if tokens is None and name == "allowed_tokens":
                continue
            if isinstance(tokens, (str, bytes)) or not isinstance(tokens, Iterable):
                raise TypeError(f"{name} must be a list of tokens, got {tokens!r}")
            tokens = tuple(tokens)
            for token in tokens:
                _check_type(name, token, int)
                _check(token >= 0, name, "of tokens >= 0", token)
            some = name != "allowed_tokens" or len(tokens) > 0
            _check(some, name, "of one token at least", tokens)
            object.__setattr__(self, name, tokens)

    def _check_order(self):
        orders = ", ".join(ORDERS)
        _check_type("order", self.order, str)
        _check(self.order in ORDERS, "order", f"one of {orders}", self.order)
        if self.remask > 0:
            plain = self.order == "ancestral" and self.steps and not self.block_length
            rule = '0 unless order is "ancestral", steps are given and block_length is not'
            _check(bool(plain), "remask", rule, self.remask)

    def _check_correction(self):
        names = ", ".join(CORRECTIONS)
        _check_type("correction", self.correction, str)
        _check(self.correction in CORRECTIONS, "correction", f"one of {names}", self.correction)
        _check_type("shared_rests", self.shared_rests, int)
        _check(self.shared_rests >= 1, "shared_rests", ">= 1", self.shared_rests)
        _check_type("sweeps", self.sweeps, int)
        _check(self.sweeps >= 1, "sweeps", ">= 1", self.sweeps)
        _check_type("ess_threshold", self.ess_threshold, Real)
        _check(0 <= self.ess_threshold <= 1, "ess_threshold", "in [0, 1]", self.ess_threshold)
        if self.ess_target is not None:
            _check_type("ess_target", self.ess_target, Real)
            _check(self.ess_target >= 1, "ess_target", ">= 1", self.ess_target)
        if self.correction == "joint":
            rule = "another one with correction 'joint'"
            _check(self.order != "resolved", "order", rule, self.order)
            return
        orders = (*PLANNED, "resolved") if self.correction == "speculative" else PLANNED
        rule = f"one of {', '.join(orders)} with correction {self.correction!r}"
        _check(self.order in orders, "order", rule, self.order)
        if self.correction == "local":
            return
        _check(not self.record, "record", f"off with correction {self.correction!r}", self.record)
        rule = f"None with correction {self.correction!r}"
        _check(self.ess_target is None, "ess_target", rule, self.ess_target)
        if self.correction in ("speculative", "gibbs"):
            plain_law = {"top_k": 0, "top_p": 1, "min_p": 0}
            if self.correction == "gibbs":
                plain_final = self.final == "sample"
                _check(plain_final, "final", "\"sample\" with correction 'gibbs'", self.final)
            if self.correction == "speculative":
                plain_law["energy_temperature"] = 1
            for name, plain in plain_law.items():
                value = getattr(self, name)
                rule = f"{plain} with correction {self.correction!r}"
                _check(value == plain, name, rule, value)

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
