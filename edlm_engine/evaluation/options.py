"""The options of `edlm evaluate` and its forms. As in `edlm_engine.options`, without torch."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

# Options of sampling that `edlm evaluate samples` takes several values of, outer loops first.
SWEPT = (
    "--candidates",
    "--window",
    "--energy-temperature",
    "--top-p",
    "--temperature",
    "--steps",
)
# Adds options that several commands have.
Add = Callable[..., None]


class Forms(argparse._SubParsersAction):
    """Sub-commands of a command that is one itself: its own options before them would be lost."""

    def __call__(self, parser, namespace, values, option_string=None) -> None:
        own = [a for a in parser._actions if a.option_strings and hasattr(namespace, a.dest)]
        given = [a.option_strings[0] for a in own if getattr(namespace, a.dest) != a.default]
        if given:
            name = (values or [""])[0]
            parser.error(f"{', '.join(given)} must come after {name}")
        super().__call__(parser, namespace, values, option_string)


def add_evaluate(commands: Any, add_engine_options: Add, add_sampling_options: Add) -> None:
    """The command and its forms, with the options of the other commands that have them too."""
    evaluate = commands.add_parser(
        "evaluate",
        help="log p_AR of generated text with the energy and without it; likelihood of held-out "
        "text; texts of several configurations, judged",
        description="Alone: text with the energy and without it, scored by the AR model of the "
        "energy, or with an NCE energy by the one beside the denoiser.",
    )
    add_engine_options(evaluate)
    add_sampling_options(evaluate)
    evaluate.add_argument("--num", type=int, default=64, help="sequences of each (default 64)")
    evaluate.add_argument("--batch-size", type=int, default=16, help="at a time (default 16)")
    evaluate.add_argument(
        "--judge",
        help="a causal language model of another vocabulary that reads the texts: smollm2, a "
        "folder of transformers or a GGUF file",
    )
    _add_output_options(evaluate)
    forms = evaluate.add_subparsers(dest="form", action=Forms, metavar="{likelihood,samples}")

    about = "bounds on -log p of held-out text: the denoiser's, the sampler's, the paper's estimate"
    likelihood = forms.add_parser("likelihood", help=about, description=about)
    likelihood.add_argument(
        "--data", nargs="+", required=True, help="text files, or folders of *.txt files"
    )
    likelihood.add_argument(
        "--unwrap",
        action=argparse.BooleanOptionalAction,
        default=True,
        help="join the wrapped lines of plain-text books, a paragraph a line",
    )
    add_engine_options(likelihood)
    add_sampling_options(likelihood, steps=0)
    add_int = _int_options(likelihood)
    add_int("--windows", 64, "texts of the model's length, evenly spread over the data")
    add_int("--draws", 4, "noisy states of each, at stratified times")
    add_int("--pool", 16, "candidates of each such state for log Z, and for the sampler's bound")
    add_int("--batch-size", 8, "noisy states at a time")
    _add_output_options(likelihood)

    about = (
        "texts of one or several configurations, judged: quality, entropy, repetition, distance to "
        "one token at a time, cost. Options of sampling take several values, all combinations of "
        "which are compared at the same seeds"
    )
    samples = forms.add_parser(
        "samples", help="texts of several configurations, judged", description=about
    )
    samples.add_argument(
        "--out",
        type=Path,
        required=True,
        help="folder for units of work, figures and plots; a run into the same one goes on there",
    )
    add_engine_options(samples, several=True)
    add_sampling_options(samples, several=True)
    add_int = _int_options(samples)
    add_int("--num", 64, "sequences of each configuration, a multiple of --batch-size")
    add_int("--batch-size", 16, "sequences at a time, a unit of work")
    add_int("--joint-draws", 4, "places in a text for its distance to one token at a time; 0: none")
    samples.add_argument(
        "--judge",
        help="a causal language model that had no part in the texts: a folder, hub id or GGUF "
        'file (default smollm2), or "none"',
    )
    samples.add_argument(
        "--mauve", action="store_true", help="MAUVE to texts of one token at a time, or to --data"
    )
    samples.add_argument("--data", nargs="+", help="text files, the reference of --mauve")
    samples.add_argument("--minutes", type=float, help="begin no unit of work after so long")
    _add_output_options(samples)


def _int_options(parser: argparse.ArgumentParser) -> Callable[[str, int, str], None]:
    def add(flag: str, default: int, text: str) -> None:
        parser.add_argument(flag, type=int, default=default, help=f"{text} (default {default})")

    return add


def _add_output_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="one JSON object")
    parser.add_argument("--progress", action="store_true", help="show progress bars")
