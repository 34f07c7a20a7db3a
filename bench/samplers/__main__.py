"""Samplers compared over one fixed denoiser. Stop it at any time; the same command goes on."""

from __future__ import annotations

import argparse
import logging
import os
import platform
from pathlib import Path

import torch

from bench.samplers.oracle import oracle_problems
from bench.samplers.pair import pair_problems
from bench.samplers.run import Asked, Task, run
from edlm_engine import Engine
from edlm_engine.evaluation.commands import held_out_text
from edlm_engine.evaluation.judge import independent_judge
from edlm_engine.options import add_samplers
from edlm_engine.training.corpus import text_files

ROOT = Path(__file__).parents[2]
COUNTED, ORACLE = (8192, 2048), (1024, 256)  # texts of each sampler, and of a unit of work

_log = logging.getLogger("bench.samplers")


def main(args: argparse.Namespace | None = None) -> None:
    if args is None:
        parser = argparse.ArgumentParser(prog="python -m bench.samplers", description=__doc__)
        add_samplers(parser)
        args = parser.parse_args()
        logging.basicConfig(format="%(message)s", level=logging.INFO)
    torch.set_num_threads(args.threads)
    tasks = []
    if "oracle" in args.only:
        for problem in oracle_problems():
            texts, chunk = COUNTED if problem.name.startswith("counted") else ORACLE
            tasks.append(Task(problem, texts, chunk))
    judge_name = None
    if "pair" in args.only:
        pair, judge_name = _pair_tasks(args)
        tasks += pair
    asked = Asked(
        units=args.units or ROOT / "build" / "samplers",
        out=args.out or ROOT / "bench" / "results" / "samplers",
        minutes=args.minutes,
        others=args.sampler,
        families=args.family,
    )
    print(run(asked, tasks, _facts(args, judge_name)))


def _pair_tasks(args: argparse.Namespace) -> tuple[list[Task], str | None]:
    engine, judge, windows = Engine.from_pretrained(args.model), None, None
    if args.judge != "none":
        judge = independent_judge(args.judge, [engine], dtype=torch.bfloat16)
    if args.data:
        windows, _ = held_out_text(engine, text_files(args.data), None, args.num, unwrap=True)
    else:
        _log.info("no --data: there is no held-out text to put gaps into")
    budgets = {"steps": args.steps, "candidates": tuple(args.candidates)}
    problems = pair_problems(engine, windows, judge, **budgets)
    return [Task(problem, args.num, args.chunk) for problem in problems], judge and judge.name


def _facts(args: argparse.Namespace, judge: str | None) -> dict[str, str]:
    processor = platform.processor() or platform.machine()
    load = os.getloadavg()[0] if hasattr(os, "getloadavg") else float("nan")
    facts = {
        "machine": f"{processor}, {args.threads} CPU thread(s), torch {torch.__version__}; load "
        f"{load:.0f} at the end, so that seconds are of a machine that others used too where that "
        "is more than 1"
    }
    if judge:
        facts["judge"] = f"{Path(judge).name}, which had no part in the texts; blocks in bfloat16"
    return facts


if __name__ == "__main__":
    main()
