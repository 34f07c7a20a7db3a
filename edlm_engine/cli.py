"""The command line: arguments in, calls of the library, text or JSON out.

What needs torch is imported by the command that runs: `edlm --help` answers at once.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import subprocess
import sys
import typing
from pathlib import Path
from typing import Any

TRAINED = {
    "denoiser": "a masked denoiser of our own, from nothing",
    "ar": "a left-to-right model of our own, from nothing",
    "adapt": "a pretrained causal language model, to a masked denoiser",
}


def main(argv: list[str] | None = None) -> int:
    parser = _parser()
    args = parser.parse_args(argv)
    logging.basicConfig(level=logging.INFO, format="%(name)s: %(message)s")
    try:
        args.run(args)
    except (ValueError, TypeError, OSError, RuntimeError) as error:
        print(f"edlm {args.command}: {error}", file=sys.stderr)
        return 2
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="edlm", description=__import__("edlm_engine").__doc__)
    commands = parser.add_subparsers(dest="command", required=True)

    generate = commands.add_parser("generate", help="print generated text")
    _add_engine_options(generate)
    _add_sampling_options(generate)
    generate.add_argument("--num", type=int, default=1, help="sequences (default 1)")
    generate.add_argument("--prompt", help="text at the start, kept as it is")
    generate.add_argument("--suffix", help="text at the end, kept as it is")
    generate.add_argument("--json", action="store_true", help="one JSON object per sequence")
    generate.add_argument("--progress", action="store_true", help="show a progress bar")
    generate.set_defaults(run=_generate)

    train = commands.add_parser("train", help="train a model on text files")
    kinds = train.add_subparsers(dest="kind", required=True)
    for kind, about in TRAINED.items():
        one = kinds.add_parser(kind, help=about)
        _add_train_options(one, _train_config(kind))
        one.set_defaults(run=_train)

    evaluate = commands.add_parser(
        "evaluate", help="log p_AR of generated text with the energy and without it"
    )
    _add_engine_options(evaluate)
    _add_sampling_options(evaluate)
    evaluate.add_argument("--num", type=int, default=64, help="sequences of each (default 64)")
    evaluate.add_argument("--batch-size", type=int, default=16)
    evaluate.add_argument(
        "--judge",
        help="a causal language model of another vocabulary that reads the texts: smollm2, a "
        "folder of transformers or a GGUF file",
    )
    evaluate.add_argument("--json", action="store_true")
    evaluate.add_argument("--progress", action="store_true")
    evaluate.set_defaults(run=_evaluate)

    demo = commands.add_parser("demo", help="see it work: a free text, and one with gaps filled in")
    demo.add_argument("--seed", type=int, default=0)
    demo.set_defaults(run=_demo)

    bench = commands.add_parser("bench", help="latency report, from a checkout of the project")
    bench.add_argument("--report", type=Path, default=Path("bench/results/latest"), metavar="DIR")
    bench.add_argument("-k", dest="expression", help="pytest's -k: only some of the suites")
    bench.add_argument("--device", default="cpu", help="cpu (default) or cuda")
    bench.set_defaults(run=_bench)

    info = commands.add_parser("info", help="versions, processor, backends, bundled model")
    info.add_argument("--json", action="store_true")
    info.set_defaults(run=_info)
    return parser


def _add_engine_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", help="folder of a denoiser (default: the bundled model)")
    parser.add_argument(
        "--energy",
        default="default",
        help='"ar", "coar", "none" or the folder of an AR model (default: ar for the bundled one)',
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument(
        "--dtype",
        choices=("float32", "bfloat16"),
        help="of all weights (default: bfloat16 blocks where the processor has it, float32 heads)",
    )


def _add_sampling_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--steps", type=int, default=128, help="0: one position at a time")
    parser.add_argument("--candidates", type=int, default=8, help="K, 1 for plain MDLM")
    parser.add_argument("--window", type=float, default=1.0, help="energy at t in [1 - window, 1]")
    parser.add_argument("--temperature", type=float, default=1.0)
    parser.add_argument("--top-p", type=float, default=1.0)
    parser.add_argument("--energy-temperature", type=float, default=1.0)
    parser.add_argument("--length", type=int, help="tokens (default: the model's own length)")
    parser.add_argument("--seed", type=int, default=0)


def _train_config(kind: str) -> type:
    from edlm_engine.training.config import AdaptConfig, TrainConfig

    return AdaptConfig if kind == "adapt" else TrainConfig


def _add_train_options(parser: argparse.ArgumentParser, config: type) -> None:
    """One option per field of a run's configuration."""
    types = typing.get_type_hints(config)
    for field in dataclasses.fields(config):
        flag, kind = "--" + field.name.replace("_", "-"), types[field.name]
        required = field.default is dataclasses.MISSING
        common: dict[str, Any] = {"dest": field.name, "required": required}
        if not required:
            common |= {"default": field.default, "help": f"(default {field.default})"}
        if kind is bool:
            parser.add_argument(flag, action=argparse.BooleanOptionalAction, **common)
        elif typing.get_origin(kind) is tuple:
            parser.add_argument(flag, nargs="+", **common)
        else:
            optional = [arg for arg in typing.get_args(kind) if arg is not type(None)]
            parser.add_argument(flag, type=optional[0] if optional else kind, **common)


def _engine(args: argparse.Namespace):
    import torch

    from edlm_engine import Engine

    options = {"device": args.device}
    if args.energy != "default":
        options["energy"] = None if args.energy == "none" else args.energy
    if args.dtype:
        options["dtype"] = getattr(torch, args.dtype)
    return Engine.from_pretrained(args.model, **options)


def _config(args: argparse.Namespace):
    from edlm_engine import GenerationConfig

    return GenerationConfig(
        steps=args.steps or None,
        num_candidates=args.candidates,
        window=args.window,
        temperature=args.temperature,
        top_p=args.top_p,
        energy_temperature=args.energy_temperature,
        length=args.length,
    )


def _generate(args: argparse.Namespace) -> None:
    out = _engine(args).generate(
        args.num,
        config=_config(args),
        seed=args.seed,
        prompt=args.prompt,
        suffix=args.suffix,
        progress=args.progress,
    )
    for b in range(args.num):
        ess = out.ess[b][~out.ess[b].isnan()]
        facts = {
            "text": out.texts[b] if out.texts else None,
            "seed": int(out.seeds[b]),
            "nfe": int(out.nfe[b]),
            "energy_evaluations": int(out.energy_evaluations[b]),
            "mean_ess": ess.mean().item() if len(ess) else None,
        }
        if args.json:
            print(json.dumps(facts | {"tokens": out.sequences[b].tolist()}))
            continue
        ess_note = f", mean ESS {facts['mean_ess']:.2f}" if len(ess) else ""
        print(
            f"--- {b + 1} of {args.num}: {facts['nfe']} denoiser evaluations, "
            f"{facts['energy_evaluations']} candidates scored{ess_note}"
        )
        print(facts["text"] if out.texts else out.sequences[b].tolist())


def _train(args: argparse.Namespace) -> None:
    from edlm_engine.training.trainer import train

    config = _train_config(args.kind)
    fields = {field.name: getattr(args, field.name) for field in dataclasses.fields(config)}
    for name, value in fields.items():
        if isinstance(value, list):
            fields[name] = tuple(value)
    result = train(args.kind, config(**fields))
    end = "finished" if result.finished else "stopped; --resume continues"
    loss = result.held_out_loss
    note = "" if loss is None else f", held-out loss {loss:.4f} nats per token"
    print(f"{end} at step {result.step}{note}; see {Path(args.out)}")


def _evaluate(args: argparse.Namespace) -> None:
    from edlm_engine.evaluation.compare import compare_energy, table
    from edlm_engine.evaluation.judge import Judge

    engine = _engine(args)
    model = getattr(engine.energy, "model", None)
    if model is None:
        raise ValueError(f"--energy must be an AR model, got {args.energy}")
    comparison = compare_energy(
        engine,
        model,
        num=args.num,
        batch_size=args.batch_size,
        config=_config(args),
        seed=args.seed,
        progress=args.progress,
        judge=None if args.judge is None else Judge.load(args.judge, device=args.device),
    )
    print(json.dumps(comparison.to_json()) if args.json else table(comparison))


def _demo(args: argparse.Namespace) -> None:
    from edlm_engine.evaluation.demo import demo

    demo(seed=args.seed)


def _bench(args: argparse.Namespace) -> None:
    import torch

    root = Path(__file__).resolve().parents[1]
    if not (root / "bench" / "report").is_dir():
        raise FileNotFoundError(f"no benchmark suites in {root}: run this from a checkout")
    if torch.device(args.device).type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"--device must be one that torch sees, got {args.device}")
    args.report.mkdir(parents=True, exist_ok=True)
    results = args.report.resolve() / "results.json"
    command = [sys.executable, "-m", "pytest", "bench", "--benchmark-only", "--device", args.device]
    command += [f"--benchmark-json={results}"]
    if args.expression:
        command += ["-k", args.expression]
    if subprocess.run(command, cwd=root).returncode:
        raise RuntimeError("a benchmark failed; no report was written")
    sys.path.insert(0, str(root))
    from bench.report import write_report

    print(write_report([results], args.report))


def _info(args: argparse.Namespace) -> None:
    from edlm_engine import info

    facts = info.collect()
    print(json.dumps(facts, indent=2) if args.json else info.text(facts))


if __name__ == "__main__":
    raise SystemExit(main())
