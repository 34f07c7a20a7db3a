"""The command line: arguments in, calls of the library, text or JSON out."""

from __future__ import annotations

import argparse
import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edlm_engine.jobs.options import check_job_options
from edlm_engine.options import command_line, train_config
from edlm_engine.sampling.options import config_of

if TYPE_CHECKING:
    pass

# Nothing here imports torch before a command runs: `edlm --help` answers at once.
BAD_INPUT, INTERRUPTED, BROKEN_PIPE = 2, 130, 141
NO_TESTS_COLLECTED = 5  # pytest's exit status
ERRORS = (ValueError, TypeError, OSError, RuntimeError, ImportError, MemoryError)  # one line each


def main(argv: list[str] | None = None) -> int:
    """Run a command; the exit status is 0, or one of the three above."""
    args = command_line().parse_args(argv)
    logging.basicConfig(format="%(name)s: %(message)s")
    logging.getLogger("edlm_engine").setLevel(logging.INFO)
    with _noted_interrupts() as interrupts:
        try:
            status = COMMANDS[args.command](args) or 0
            sys.stdout.flush()
            return status
        except BrokenPipeError:
            # Nobody reads any more. Python's own flush at exit must not complain of it.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            return BROKEN_PIPE
        except (KeyboardInterrupt, *ERRORS) as error:
            if interrupts or isinstance(error, KeyboardInterrupt):
                print(f"edlm {args.command}: interrupted{_how_to_go_on(args)}", file=sys.stderr)
                return INTERRUPTED
            print(f"edlm {args.command}: {error or 'out of memory'}", file=sys.stderr)
            return BAD_INPUT


@contextmanager
def _noted_interrupts() -> Iterator[list[int]]:
    """A list that Ctrl-C leaves a mark in: the import of torch makes other errors of some."""
    noted: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield noted
        return

    def note(number: int, _frame: object) -> None:
        noted.append(number)
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGINT, note)
    try:
        yield noted
    finally:
        signal.signal(signal.SIGINT, before)


def _prepare(args: argparse.Namespace) -> None:
    """Set the CPU threads, before torch is imported."""
    # Idle threads of OpenMP spin by default, which beside one other busy process costs half the
    # speed. Asleep they cost some microseconds per operation.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    if args.threads is not None:
        _require("--threads", args.threads, 1)
        import torch

        torch.set_num_threads(args.threads)


def _require(option: str, value: int, least: int) -> None:
    if value < least:
        raise ValueError(f"{option} must be >= {least}, got {value}")


def _engine(args: argparse.Namespace):
    import torch

    from edlm_engine import Engine

    options = {"device": args.device, "weights": args.weights, "mask_id": args.mask_id}
    options |= {name: getattr(args, name) for name in ("subfolder", "revision", "tokenizer")}
    if args.energy != "default":
        options["energy"] = None if args.energy == "none" else args.energy
    if args.dtype:
        options["dtype"] = getattr(torch, args.dtype)
    return Engine.from_pretrained(args.model, **options)


def _generate(args: argparse.Namespace) -> None:
    _require("--num", args.num, 1)
    check_job_options(args)
    if args.record and not args.json:
        raise ValueError("--record must come with --json, which prints it")
    if args.stream and args.num != 1:
        raise ValueError(f"--num must be 1 with --stream, got {args.num}")
    if args.watch and args.progress:
        raise ValueError("--watch shows the progress: leave --progress out")
    config = config_of(args)
    _prepare(args)
    if args.out is not None:
        from edlm_engine.jobs.command import generate_job

        generate_job(args, _engine, config)
        return
    from edlm_engine import watch
    from edlm_engine.printed import print_json, print_text

    given: dict[str, Any] = {"config": config, "prompt": args.prompt, "suffix": args.suffix}
    if args.stream:
        watch.stream(_engine(args), seed=args.seed, progress=args.progress, **given)
        return
    if args.watch and watch.can_show():
        outs = watch.show(_engine(args), args.num, seed=args.seed, **given)
        rows, records = [(out, 0) for out in outs], None
    else:
        if args.watch:
            print("--watch needs a terminal: the text comes when it is done", file=sys.stderr)
        options = {"seed": args.seed, "progress": args.progress}
        out = _engine(args).generate(args.num, **options, **given)
        rows = [(out, b) for b in range(args.num)]
        records = None if out.record is None else out.record.to_dicts()
    for number, (out, b) in enumerate(rows, start=1):
        if args.json:
            print_json(out, b, None if records is None else records[b])
        else:
            print_text(f"{number} of {args.num}", out, b)


def _train(args: argparse.Namespace) -> int:
    kind = train_config(args.kind)
    fields = {field.name: getattr(args, field.name) for field in dataclasses.fields(kind)}

    for name, value in fields.items():
        if isinstance(value, list):
            fields[name] = tuple(value)
    config = kind(**fields)
    _prepare(args)
    from edlm_engine.training.trainer import train

    result = train(args.kind, config)
    end = "finished" if result.finished else "stopped; --resume continues"
    loss = result.held_out_loss
    note = "" if loss is None else f", held-out loss {loss:.4f} {result.unit}"
    print(f"{end} at step {result.step}{note}; see {Path(args.out)}")
    return 0 if result.finished else INTERRUPTED


def _how_to_go_on(args: argparse.Namespace) -> str:
    if args.command == "generate" and args.out is not None:
        return "; the same command goes on"
    if args.command != "train":
        return ""
    kept = any((Path(args.out) / "checkpoint").glob("step-*"))
    return "; --resume continues from the last checkpoint" if kept else " before any checkpoint"


def _prepare_corpus(args: argparse.Namespace) -> None:
    from edlm_engine.training.prepare import prepare_text8

    for name, count in prepare_text8(args.source, args.out).items():
        print(f"{args.out / name}: {count:,} characters")


def _bundle(args: argparse.Namespace) -> None:
    from edlm_engine.training.bundle import bundle

    made = bundle(args.denoiser, args.ar, args.out, args.data, args.energy)
    for name, recipe in made.items():
        unit, found = (
            "nats per window" if name == "energy" else "nats per token",
            recipe["held_out"],
        )
        text = f"{found[unit.replace(' ', '_')]} {unit} held out" if found else "nothing held out"
        print(f"{name}: {text}")
    print(f"edlm generate --model {args.out} --energy {'nce' if args.energy else 'ar'}")


def _evaluate(args: argparse.Namespace) -> None:
    _prepare(args)
    from edlm_engine.evaluation import commands

    getattr(commands, args.form or "compare")(args, _engine, config_of)


def _demo(args: argparse.Namespace) -> None:
    _prepare(args)
    from edlm_engine.evaluation.demo import demo

    demo(seed=args.seed)


def _serve(args: argparse.Namespace) -> int:
    config = config_of(args)
    _prepare(args)
    try:
        from edlm_engine.serving.command import run
    except ImportError as error:
        raise ImportError(f"pip install 'edlm_engine[serve]' for this command: {error}") from error
    return run(args, config, _engine)


def _bench(args: argparse.Namespace) -> None:
    root = Path(__file__).resolve().parents[1]
    if not (root / "bench" / "report").is_dir():
        raise FileNotFoundError(f"no benchmark suites in {root}: run this from a checkout")
    if args.form == "samplers":
        sys.path.insert(0, str(root))
        from bench.samplers.__main__ import main as compare_samplers

        return compare_samplers(args)
    if args.form == "serving":
        sys.path.insert(0, str(root))
        from bench.serving.__main__ import main as serve_under_load

        return serve_under_load(args)
    from edlm_engine.execution.devices import require_device

    require_device(args.device)
    args.report.mkdir(parents=True, exist_ok=True)
    results = args.report.resolve() / "results.json"
    command = [sys.executable, "-m", "pytest", "bench", "--benchmark-only", "--device", args.device]
    command += [f"--benchmark-json={results}"]
    if args.expression:
        command += ["-k", args.expression]
    status = subprocess.run(command, cwd=root).returncode
    if status == NO_TESTS_COLLECTED:
        raise ValueError(f"no benchmark matches -k {args.expression!r}")
    if status:
        raise RuntimeError("a benchmark failed; no report was written")
    sys.path.insert(0, str(root))
    from bench.report import write_report

    print(write_report([results], args.report))


def _convert(args: argparse.Namespace) -> None:
    from edlm_engine.checkpoints.convert import convert

    options = {"weights": args.weights, "mask_id": args.mask_id}
    kind = convert(args.source, args.target, _source(args), energy=args.energy, **options)
    flag = "model" if kind == "denoiser" else "energy"
    print(f"{kind}: edlm generate --{flag} {args.target}")


def _source(args: argparse.Namespace):
    from edlm_engine.checkpoints.hub import Source

    return Source(subfolder=args.subfolder, revision=args.revision)


def _info(args: argparse.Namespace) -> None:
    from edlm_engine import info

    if args.path is None:
        facts = info.collect()
    else:
        from edlm_engine.checkpoints.describe import describe

        options = {"weights": args.weights, "mask_id": args.mask_id}
        facts = describe(args.path, _source(args), **options)
    print(json.dumps(facts, indent=2) if args.json else info.text(facts))


COMMANDS = {
    "generate": _generate,
    "train": _train,
    "prepare": _prepare_corpus,
    "bundle": _bundle,
    "evaluate": _evaluate,
    "demo": _demo,
    "serve": _serve,
    "bench": _bench,
    "convert": _convert,
    "info": _info,
}

if __name__ == "__main__":
    raise SystemExit(main())
