"""The options of the command line. Nothing here imports torch: `edlm --help` answers at once."""

from __future__ import annotations

import argparse
import dataclasses
import typing
from pathlib import Path
from typing import Any

from edlm_engine.evaluation.options import SWEPT, Forms, add_evaluate
from edlm_engine.jobs.options import add_job_options
from edlm_engine.sampling.options import add_options
from edlm_engine.serving.options import add_serve
from edlm_engine.training.config import AdaptConfig, EnergyTrainConfig, RunConfig, TrainConfig
from edlm_engine.version import __version__

TRAINED = {
    "denoiser": "a masked denoiser of our own, from nothing",
    "ar": "a left-to-right model of our own, from nothing",
    "adapt": "a pretrained causal language model, to a masked denoiser",
    "energy": "an NCE energy, to tell data from what a denoiser draws",
}

# What the fields of the configurations of training mean, in a line each.
HELP = {
    "data": "text files, or folders of *.txt files",
    "out": "folder of the run; its model is ready for --model or --energy",
    "held_out": "patterns of file names to measure the loss on, not to train on",
    "unwrap": "join the wrapped lines of plain-text books, a paragraph a line",
    "tokenizer": "use this tokenizer.json instead of training one; or characters: a token for each "
    "character of the training files",
    "vocab_size": "tokens of the tokenizer to train",
    "length": "tokens per window, the longest text of the model",
    "hidden_dim": "width of the model, a multiple of 2 * heads; an energy's weights then are fresh",
    "blocks": "transformer blocks; of an energy that starts with a denoiser's, how many it keeps",
    "heads": "attention heads",
    "cond_dim": "width of the denoiser's time input",
    "dropout": "share of activations dropped in training",
    "batch_size": "windows per step",
    "steps": "optimiser steps in all",
    "lr": "largest learning rate; adapt: by default 2e-3, or 3e-4 for full weights",
    "warmup": "steps until the learning rate is reached",
    "weight_decay": "decay of the weights, times the learning rate",
    "optimizer": "adamw, or muon for the matrices inside the blocks",
    "seed": "of weights, windows and noise",
    "ema": "decay per step of the averaged weights, which are the ones saved",
    "eval_every": "steps between two held-out losses",
    "eval_windows": "windows of such a loss",
    "final_windows": "windows of the last held-out loss",
    "checkpoint_every": "steps between two checkpoints",
    "resume": "continue the run in --out from its last checkpoint",
    "threads": "CPU threads (default: torch's); 1 beside other busy processes",
    "precision": "bf16 or fp32, of the products",
    "compile": "pass the model through torch.compile",
    "cooldown": "share of the steps, at the end, in which the learning rate falls to 0",
    "base": "the model to adapt: smollm2, a folder of transformers, or a GGUF file",
    "weights": "low-rank trains a small change of the base, full all of it",
    "rank": "of the low-rank change",
    "alpha": "scale of the low-rank change, times the rank",
    "mask": "the token that stands for the mask (default: one is added)",
    "bos": "the token put in front (default: the base's own)",
    "anneal": "steps in which later positions come into sight",
    "self_samples": "train on so many documents drawn from the base, not on text",
    "start": "folder of an adapted run to begin with",
    "denoiser": "folder, file or hub id of the frozen denoiser (default: the bundled one)",
    "negatives": "candidates drawn from the denoiser for each window",
    "redraws": "windows with a few positions drawn anew, to be told from each window too",
}


def command_line() -> argparse.ArgumentParser:
    """The parser; `command` of what it gives is the name of the command."""
    parser = argparse.ArgumentParser(
        prog="edlm", description="Exact, fast sampling for energy-based diffusion language models."
    )
    parser.add_argument("--version", action="version", version=f"edlm {__version__}")
    commands = parser.add_subparsers(dest="command", required=True)

    generate = commands.add_parser("generate", help="print generated text, or write much of it")
    _add_engine_options(generate)
    add_options(generate, further=True)
    generate.add_argument("--num", type=int, default=1, help="sequences (default 1)")
    generate.add_argument("--prompt", help="text at the start, kept as it is")
    generate.add_argument("--suffix", help="text at the end, kept as it is")
    generate.add_argument("--progress", action="store_true", help="show a progress bar")
    shown = generate.add_mutually_exclusive_group()
    shown.add_argument("--json", action="store_true", help="one JSON object per sequence")
    shown.add_argument(
        "--watch", action="store_true", help="show the text appear in place, on a terminal"
    )
    shown.add_argument(
        "--stream", action="store_true", help="print the text alone, each word as soon as it stands"
    )
    add_job_options(generate)

    train = commands.add_parser("train", help="train a model on text files")
    kinds = train.add_subparsers(dest="kind", required=True)
    for kind, about in TRAINED.items():
        _add_train_options(kinds.add_parser(kind, help=about), train_config(kind))

    about = "text8 in three files, to train on, to validate and to test"
    prepare = commands.add_parser("prepare", help=about, description=about)
    prepare.add_argument("corpus", choices=("text8",), help="what it is")
    prepare.add_argument("source", type=Path, help="text8 or its beginning: .zip, .gz, .xz, plain")
    prepare.add_argument("out", type=Path, help="folder of train.txt, valid.txt and test.txt")

    bundle = commands.add_parser(
        "bundle", help="put a trained denoiser and its energies together as one folder"
    )
    bundle.add_argument("denoiser", type=Path, help="folder of the denoiser's run")
    bundle.add_argument("ar", type=Path, help="folder of the AR model's run")
    bundle.add_argument("out", type=Path, help="folder to write, ready for --model")
    bundle.add_argument("--energy", type=Path, help="folder of the run of an NCE energy")
    bundle.add_argument(
        "--data",
        nargs="+",
        default=(),
        help="files or folders with the held-out texts, to measure the rounded weights on",
    )

    add_evaluate(commands, _add_engine_options, _add_sampling_options)

    add_serve(commands, _add_engine_options, add_options)

    demo = commands.add_parser("demo", help="see it work: a free text, and one with gaps filled in")
    demo.add_argument("--seed", type=int, default=0, help="of all random numbers (default 0)")
    demo.add_argument("--threads", type=int, help=HELP["threads"])

    bench = commands.add_parser("bench", help="latency report, from a checkout of the project")
    bench.add_argument(
        "--report",
        type=Path,
        default=Path("bench/results/latest"),
        metavar="DIR",
        help="where the page goes (default bench/results/latest)",
    )
    bench.add_argument("-k", dest="expression", help="pytest's -k: only some of the suites")
    bench.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    forms = bench.add_subparsers(dest="form", action=Forms, metavar="{samplers,serving}")
    about = "samplers compared over one fixed denoiser: how far from the exact law, at what cost"
    add_samplers(forms.add_parser("samplers", help=about, description=about))
    about = "a server under load on loopback: throughput, latency, memory"
    add_serving(forms.add_parser("serving", help=about, description=about))

    convert = commands.add_parser("convert", help="write a checkpoint in this project's layout")
    convert.add_argument("source", help="folder, file or hub id of a model")
    convert.add_argument("target", type=Path, help="folder to write, new or empty")
    convert.add_argument(
        "--energy", action="store_true", help="of a checkpoint of EDLM, the energy in it"
    )
    _add_source_options(convert)

    info = commands.add_parser(
        "info", help="versions, processor, backends, bundled model; or what a checkpoint is"
    )
    info.add_argument("path", nargs="?", help="folder, file or hub id of a model")
    _add_source_options(info)
    info.add_argument("--json", action="store_true", help="one JSON object")
    return parser


def add_samplers(parser: argparse.ArgumentParser) -> None:
    """The options of `edlm bench samplers`."""
    parts = ("oracle", "pair")
    parser.add_argument(
        "--only", nargs="+", choices=parts, default=parts, help="models without error, a real pair"
    )
    parser.add_argument(
        "--sampler",
        action="append",
        default=[],
        metavar="MODULE:FUNCTION",
        help="another sampler to compare, (denoiser, energy, canvas, seeds) -> tokens; repeatable",
    )
    parser.add_argument(
        "--family",
        action="append",
        default=[],
        help="work on these samplers only (as the plots name them); repeatable",
    )
    parser.add_argument("--model", help="the pair: as of edlm generate, with its AR energy")
    parser.add_argument("--data", nargs="+", help="held-out text files, to put gaps into")
    parser.add_argument("--num", type=int, default=64, help="texts of the pair, each sampler (64)")
    parser.add_argument("--chunk", type=int, default=4, help="of these in a unit of work (4)")
    parser.add_argument("--steps", type=int, default=24, help="of the pair's samplers (24)")
    parser.add_argument(
        "--candidates", nargs="+", type=int, default=[2, 4, 8], help="K of the pair's (2 4 8)"
    )
    parser.add_argument("--judge", help='as of edlm evaluate samples, or "none"')
    parser.add_argument("--minutes", type=float, help="begin no unit of work after so long")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    parser.add_argument("--units", type=Path, help="of work, to go on from (build/samplers)")
    parser.add_argument("--out", type=Path, help="where the page goes (bench/results/samplers)")


def add_serving(parser: argparse.ArgumentParser) -> None:
    """The options of `edlm bench serving`."""
    parser.add_argument("--seconds", type=float, default=60.0, help="of an open loop (60)")
    parser.add_argument("--requests", type=int, default=36_000, help="for memory's course (36000)")
    parser.add_argument("--note", help="what the page is to say of how it was made")
    parser.add_argument("--units", type=Path, help="of work, to go on from (build/serving)")
    parser.add_argument("--out", type=Path, help="where the page goes (bench/results/serving)")


def _add_source_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--subfolder", help="inside the repository or folder")
    parser.add_argument("--revision", help="branch, tag or commit of a hub id")
    parser.add_argument(
        "--weights", choices=("ema", "raw"), default="ema", help="of a .ckpt (default ema)"
    )
    parser.add_argument("--mask-id", type=int, help="mask token, where the files name none")


def _add_engine_options(parser: argparse.ArgumentParser, several: bool = False) -> None:
    """`several`: energies, each of which is loaded beside the same denoiser."""
    parser.add_argument(
        "--model", help="folder, file or hub id of a denoiser (default: the bundled model)"
    )
    _add_source_options(parser)
    parser.add_argument(
        "--tokenizer", help="folder or hub id of one, for a model that has none beside it"
    )
    parser.add_argument(
        "--energy",
        default=["default"] if several else "default",
        nargs="+" if several else None,
        help='"ar", "coar", "nce", "none", or the folder, file or hub id of an AR model or an NCE '
        "energy (default: ar for the bundled one)",
    )
    parser.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of all weights (default: bfloat16 blocks where the processor has it, float32 heads)",
    )
    parser.add_argument(
        "--threads", type=int, help="CPU threads (default: torch's); 1 beside other busy processes"
    )


def _add_sampling_options(
    parser: argparse.ArgumentParser, steps: int = 128, several: bool = False
) -> None:
    """`several`: every option of `SWEPT` takes several values."""
    add_options(parser, steps=steps, several=SWEPT if several else ())


def train_config(kind: str) -> type[RunConfig]:
    """The configuration of a kind of training run."""
    configs = {"adapt": AdaptConfig, "energy": EnergyTrainConfig}
    return configs.get(kind, TrainConfig)


def _add_train_options(parser: argparse.ArgumentParser, config: type[RunConfig]) -> None:
    """One option per field of a run's configuration."""
    types = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        flag, kind = "--" + field.name.replace("_", "-"), types[field.name]
        required = field.default is dataclasses.MISSING
        default = "" if required or field.default in (None, ()) else f" (default {field.default})"
        common: dict[str, Any] = {
            "dest": field.name,
            "required": required,
            "help": HELP[field.name] + default,
        }
        if not required:
            common["default"] = field.default
        if kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **common)
        elif typing.get_origin(kind) is tuple:
            parser.add_argument(flag, nargs="+", **common)
        else:
            optional = [arg for arg in typing.get_args(kind) if arg is not type(None)]
            parser.add_argument(flag, type=optional[0] if optional else kind, **common)
