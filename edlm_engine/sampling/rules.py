"""What the fields of a configuration may be: ValueError, or TypeError for a wrong type."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from numbers import Real
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edlm_engine.sampling.config import GenerationConfig

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


def check_fields(config: GenerationConfig) -> None:
    """Raise for the first field that breaks its rule; what comes as a list is kept as a tuple."""
    for name in ("steps", "num_candidates", "length", "new_tokens", "block_length"):
        value = getattr(config, name)
        if value is not None or name == "num_candidates":
            _check_type(name, value, int)
            _check(value >= 1, name, ">= 1", value)
    given = config.new_tokens is None or config.length is None
    _check(given, "new_tokens", "None where length is given", config.new_tokens)
    _check_type("top_k", config.top_k, int)
    _check(config.top_k >= 0, "top_k", ">= 0", config.top_k)
    _check_type("min_p", config.min_p, Real)
    _check(0 <= config.min_p <= 1, "min_p", "in [0, 1]", config.min_p)
    _check_tokens(config)
    for name in ("temperature", "energy_temperature"):
        value = getattr(config, name)
        _check_type(name, value, Real)
        _check(1e-30 <= value <= 1e30, name, "in [1e-30, 1e30]", value)
    _check_type("top_p", config.top_p, Real)
    _check(0 < config.top_p <= 1, "top_p", "in (0, 1]", config.top_p)
    _check(config.final in ("sample", "argmax"), "final", '"sample" or "argmax"', config.final)
    for name in ("batch_invariant", "record"):
        _check_type(name, getattr(config, name), bool)
    for name, low, high in (
        ("remask", 0, 1),
        ("threshold", 0, 1),
        ("entropy_bound", 0, 1e30),
        ("guidance", -1e30, 1e30),
    ):
        value = getattr(config, name)
        _check_type(name, value, Real)
        _check(low <= value <= high, name, f"in [{low:g}, {high:g}]", value)
    _check(config.threshold > 0, "threshold", "in (0, 1]", config.threshold)
    _check_order(config)
    _check_correction(config)
    _check_eos(config)
    _check_window(config)


def _check_tokens(config: GenerationConfig) -> None:
    """Tokens as tuples of integers, the bias as sorted pairs: JSON has lists and text only."""
    bias = config.logit_bias
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
    object.__setattr__(config, "logit_bias", tuple(sorted((t, float(v)) for t, v in pairs)))
    for name in ("allowed_tokens", "forbidden_tokens"):
        tokens = getattr(config, name)
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
        object.__setattr__(config, name, tokens)


def _check_order(config: GenerationConfig) -> None:
    orders = ", ".join(ORDERS)
    _check_type("order", config.order, str)
    _check(config.order in ORDERS, "order", f"one of {orders}", config.order)
    if config.remask > 0:
        plain = config.order == "ancestral" and config.steps and not config.block_length
        rule = '0 unless order is "ancestral", steps are given and block_length is not'
        _check(bool(plain), "remask", rule, config.remask)


def _check_correction(config: GenerationConfig) -> None:
    names = ", ".join(CORRECTIONS)
    _check_type("correction", config.correction, str)
    _check(config.correction in CORRECTIONS, "correction", f"one of {names}", config.correction)
    _check_type("shared_rests", config.shared_rests, int)
    _check(config.shared_rests >= 1, "shared_rests", ">= 1", config.shared_rests)
    _check_type("sweeps", config.sweeps, int)
    _check(config.sweeps >= 1, "sweeps", ">= 1", config.sweeps)
    _check_type("ess_threshold", config.ess_threshold, Real)
    _check(0 <= config.ess_threshold <= 1, "ess_threshold", "in [0, 1]", config.ess_threshold)
    if config.ess_target is not None:
        _check_type("ess_target", config.ess_target, Real)
        _check(config.ess_target >= 1, "ess_target", ">= 1", config.ess_target)
    if config.correction == "joint":
        rule = "another one with correction 'joint'"
        _check(config.order != "resolved", "order", rule, config.order)
        return
    orders = (*PLANNED, "resolved") if config.correction == "speculative" else PLANNED
    rule = f"one of {', '.join(orders)} with correction {config.correction!r}"
    _check(config.order in orders, "order", rule, config.order)
    if config.correction == "local":
        return
    _check(not config.record, "record", f"off with correction {config.correction!r}", config.record)
    rule = f"None with correction {config.correction!r}"
    _check(config.ess_target is None, "ess_target", rule, config.ess_target)
    if config.correction in ("speculative", "gibbs"):
        plain_law = {"top_k": 0, "top_p": 1, "min_p": 0}
        if config.correction == "gibbs":
            plain_final = config.final == "sample"
            _check(plain_final, "final", "\"sample\" with correction 'gibbs'", config.final)
        if config.correction == "speculative":
            plain_law["energy_temperature"] = 1
        for name, plain in plain_law.items():
            value = getattr(config, name)
            rule = f"{plain} with correction {config.correction!r}"
            _check(value == plain, name, rule, value)


def _check_eos(config: GenerationConfig) -> None:
    if config.eos_id is None:
        return
    _check_type("eos_id", config.eos_id, int)
    _check(config.eos_id >= 0, "eos_id", ">= 0", config.eos_id)
    rule = "None where tokens may change: with remask, 'smc' or 'gibbs'"
    _check(config.keeps_revealed, "eos_id", rule, config.eos_id)


def _check_window(config: GenerationConfig) -> None:
    if isinstance(config.window, Real):
        _check(0 <= config.window <= 1, "window", "in [0, 1]", config.window)
        return
    if not (isinstance(config.window, (tuple, list)) and len(config.window) == 2):
        raise TypeError(f"window must be a number or a pair (low, high), got {config.window!r}")
    for value in config.window:
        _check_type("window", value, Real)
    low, high = config.window
    _check(0 <= low <= high <= 1, "window", "(low, high), 0 <= low <= high <= 1", config.window)
    object.__setattr__(config, "window", (low, high))  # JSON has lists only


def _check(good: bool, name: str, rule: str, value: object) -> None:
    if not good:
        raise ValueError(f"{name} must be {rule}, got {value!r}")


def _check_type(name: str, value: object, kind: type) -> None:
    # A truth value counts as no number, though Python thinks so.
    if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
        raise TypeError(f"{name} must be of type {kind.__name__}, got {value!r}")
