"""The options of the command line that are fields of a `GenerationConfig`, and back. No torch."""

from __future__ import annotations

import argparse
import typing
from collections.abc import Container
from dataclasses import fields
from typing import Any

from edlm_engine.sampling.config import GenerationConfig
from edlm_engine.sampling.rules import CORRECTIONS, ORDERS

# What the options say, and their order. The first ones are those that every command has.
COMMON = {
    "steps": "time steps (default {}); 0: one position at a time",
    "num_candidates": "K (default {}), 1 for plain MDLM",
    "window": "energy at t in [1 - WINDOW, 1] (default {}), or in LOW,HIGH",
    "temperature": "of the denoiser (default {})",
    "top_p": "nucleus of the denoiser (default {}: all)",
    "energy_temperature": "of the choice among candidates (default {})",
    "length": "tokens (default: the model's own length)",
}
FURTHER = {
    "new_tokens": "tokens beside those of --prompt and --suffix, instead of --length",
    "eos_id": "token that ends a text, which then takes no further step",
    "top_k": "draw from so many tokens (default {}: all)",
    "min_p": "draw from tokens of at least this share of the likeliest (default {})",
    "logit_bias": "what is added to the logit of a token; -inf forbids it",
    "allowed_tokens": "the only tokens to draw",
    "forbidden_tokens": "tokens never to draw",
    "final": "how what is left after the last step is filled (default {})",
    "order": "which positions come first (default {})",
    "block_length": "write block after block of so many tokens",
    "threshold": "of --order threshold: reveal what is at least as probable (default {})",
    "entropy_bound": "of --order entropy_bounded: nats revealed at once (default {})",
    "remask": "hide revealed tokens again with at most this probability a step (default {})",
    "guidance": "scale of classifier-free guidance by the known tokens (default {})",
    "correction": "how the energy corrects the draws (default {})",
    "shared_rests": "of --correction local: rests the candidates share (default {})",
    "ess_threshold": "of --correction smc: resample below this part of K (default {})",
    "ess_target": "score candidates only up to this effective sample size",
    "sweeps": "of --correction gibbs: how many follow the first (default {})",
    "batch_invariant": "call models on one sequence at a time: a text is the same in any batch",
    "record": "keep what every token cost",
}
FLAGS = {"num_candidates": "--candidates"}
CHOICES = {"order": ORDERS, "correction": CORRECTIONS, "final": ("sample", "argmax")}


def _window(text: str) -> float | tuple[float, ...]:
    try:
        ends = tuple(float(end) for end in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be WINDOW or LOW,HIGH, got {text!r}") from error
    return ends[0] if len(ends) == 1 else ends


def _bias(text: str) -> tuple[int, float]:
    token, _, value = text.partition(":")
    try:
        return int(token), float(value)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"must be TOKEN:BIAS, got {text!r}") from error


# Of fields that are no single number or word.
READERS: dict[str, dict[str, Any]] = {
    "window": {"type": _window},
    "logit_bias": {"type": _bias, "nargs": "+", "metavar": "TOKEN:BIAS"},
    "allowed_tokens": {"type": int, "nargs": "+", "metavar": "TOKEN"},
    "forbidden_tokens": {"type": int, "nargs": "+", "metavar": "TOKEN"},
}


def flag_of(field: str) -> str:
    """The option for a field."""
    return FLAGS.get(field, "--" + field.replace("_", "-"))


def add_options(
    parser: argparse.ArgumentParser,
    *,
    steps: int = 128,
    further: bool = False,
    several: Container[str] = (),
) -> None:
    """Options for the fields that every command has, or for all, in a group of their own.

    steps: the default. several: flags that take several values.
    """
    group = parser.add_argument_group("sampling")
    types = typing.get_type_hints(GenerationConfig)
    defaults = {field.name: field.default for field in fields(GenerationConfig)} | {"steps": steps}
    for name, text in (COMMON | FURTHER if further else COMMON).items():
        flag, default = flag_of(name), defaults[name]
        options: dict[str, Any] = {"default": default, "help": text.format(default)}
        if types[name] is bool:
            options["action"] = "store_true"
        elif name in CHOICES:
            options["choices"] = CHOICES[name]
        else:
            options |= READERS.get(name) or {"type": _number(types[name])}
        if flag in several:
            options |= {"nargs": "+", "default": [default]}
        group.add_argument(flag, **options)
    group.add_argument("--seed", type=int, default=0, help="of all random numbers (default 0)")


def _number(kind: Any) -> type:
    """int or float, of a field that may also be None."""
    return next(each for each in (*typing.get_args(kind), kind) if each in (int, float))


def config_of(args: argparse.Namespace) -> GenerationConfig:
    """The configuration that the options say."""
    given = {}
    for field in fields(GenerationConfig):
        name = flag_of(field.name).removeprefix("--").replace("-", "_")
        if hasattr(args, name):
            given[field.name] = getattr(args, name)
    return GenerationConfig(**given | {"steps": args.steps or None})
