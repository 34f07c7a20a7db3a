"""How `edlm serve` serves: limits, defaults and their options. Nothing here imports torch."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from edlm_engine.sampling.config import GenerationConfig

API_KEY_VARIABLE = "EDLM_API_KEY"
Add = Callable[..., None]


@dataclass(frozen=True)
class ServeOptions:
    """Limits and defaults of a server. Sizes are in bytes, times in seconds, `max_` inclusive.

    Raises ValueError, or TypeError for a wrong type, by the name of the field.
    """

    name: str = "edlm"  # of the model, as requests and /v1/models say it
    config: GenerationConfig = field(default_factory=GenerationConfig)  # what requests leave out
    api_key: str | None = None  # the bearer token that /v1 and /metrics ask for, if any
    memory: int | None = None  # what all running sequences may hold; None: half of what is free
    max_sequences: int = 64  # that run at a time
    max_queue: int = 256  # sequences that wait
    max_queue_seconds: float = 60.0  # a sequence waits, then it is refused
    max_seconds: float = 600.0  # of a request in all
    max_body: int = 1 << 20
    max_prompt: int = 100_000  # characters, or tokens, of a request's prompts and suffix together
    max_outputs: int = 32  # texts of a request: prompts times n
    max_steps: int = 10_000
    max_candidates: int = 64
    drain_seconds: float = 30.0  # what runs may go on for, once the server is told to stop

    def __post_init__(self):
        for name in ("max_sequences", "max_queue", "max_body", "max_prompt", "max_outputs"):
            _check(self, name, int, 1)
        for name in ("max_steps", "max_candidates"):
            _check(self, name, int, 1)
        for name in ("max_queue_seconds", "max_seconds", "drain_seconds"):
            _check(self, name, (int, float), 0)
        if self.memory is not None:
            _check(self, "memory", int, 1)
        if self.api_key is not None and not (self.api_key.isascii() and self.api_key.strip()):
            raise ValueError("api_key must be text of ASCII, and not empty")


def _check(options: ServeOptions, name: str, kind: Any, least: int) -> None:
    value = getattr(options, name)
    if isinstance(value, bool) or not isinstance(value, kind):
        raise TypeError(f"{name} must be a number, got {value!r}")
    if not value >= least:
        raise ValueError(f"{name} must be >= {least}, got {value}")


# What the fields mean that are options of the command line of the same name.
HELP = {
    "max_sequences": "sequences that run at a time",
    "max_queue": "sequences that wait; a request beyond is refused (429)",
    "max_queue_seconds": "how long a sequence waits, then it is refused (503)",
    "max_seconds": "how long a request may take in all",
    "max_body": "bytes of a request",
    "max_prompt": "characters, or tokens, of a request's prompts and suffix",
    "max_outputs": "texts of a request: prompts times n",
    "max_steps": "steps a request may ask for",
    "max_candidates": "candidates a request may ask for",
    "drain_seconds": "how long running requests may go on when the server is told to stop",
}


def add_serve(commands: Any, add_engine_options: Add, add_sampling_options: Add) -> None:
    """The command, with the options of the other commands that have them too."""
    about = "an OpenAI-compatible server for this machine, with a page to watch texts appear"
    serve = commands.add_parser("serve", help=about, description=about)
    add_engine_options(serve)
    add_sampling_options(serve, further=True)
    group = serve.add_argument_group("server")
    group.add_argument("--host", default="127.0.0.1", help="address (default 127.0.0.1)")
    group.add_argument("--port", type=int, default=8000, help="0: any free one (default 8000)")
    group.add_argument("--name", help="of the model in requests (default: from --model)")
    group.add_argument(
        "--api-key-file",
        type=Path,
        help=f"a file with the bearer token to ask for (or the variable {API_KEY_VARIABLE})",
    )
    group.add_argument(
        "--memory", type=float, help="GiB that running sequences may hold (default: half of free)"
    )
    for each in fields(ServeOptions):
        if each.name in HELP:
            kind = type(each.default)
            flag = "--" + each.name.replace("_", "-")
            text = f"{HELP[each.name]} (default {each.default:g})"
            group.add_argument(flag, type=kind, default=each.default, help=text)


def options_of(args: argparse.Namespace, config: GenerationConfig) -> ServeOptions:
    """What the options say. Raises OSError and ValueError for a bad key file."""
    given = {name: getattr(args, name) for name in HELP}
    if args.memory is not None:
        if not args.memory > 0:
            raise ValueError(f"--memory must be > 0, got {args.memory}")
        given["memory"] = int(args.memory * 2**30)
    name = args.name or ("edlm-novels" if args.model is None else str(args.model))
    return ServeOptions(name=name, config=config, api_key=_api_key(args.api_key_file), **given)


def _api_key(file: Path | None) -> str | None:
    """Of the file, or else of the environment; never an argument, which every user could read."""
    if file is None:
        return os.environ.get(API_KEY_VARIABLE) or None
    key = file.read_text(encoding="utf-8").strip()
    if not key:
        raise ValueError(f"--api-key-file must hold a token, {file} is empty")
    return key
