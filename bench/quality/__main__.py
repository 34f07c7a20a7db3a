"""The paper's experiments on our models. Stop it at any time; the same command goes on."""

from __future__ import annotations

import argparse
import logging
import platform
from pathlib import Path

import torch

from bench.quality.run import EXPERIMENTS, Asked, run
from edlm_engine import Engine
from edlm_engine.evaluation.commands import held_out_text
from edlm_engine.evaluation.judge import Judge, independent_judge
from edlm_engine.training.corpus import text_files

ROOT = Path(__file__).parents[2]
# Pairs by the name of their results; the argument of `Engine.from_pretrained`, and what they are.
PAIRS = {
    "novels": (
        None,
        "the small bundled pair (6.1 M and 5.8 M parameters, trained for an hour each on novels)",
    ),
    "smollm2": ("smollm2", "SmolLM2-135M, adapted as the denoiser and as it is as the energy"),
}
ENERGIES = ("ar", "coar", "nce")

_log = logging.getLogger("bench.quality")


def main() -> None:
    args = _parser().parse_args()
    logging.basicConfig(format="%(message)s", level=logging.INFO)
    torch.set_num_threads(args.threads)
    engines = _engines(args)
    # Rounding of the judge's blocks is some 0.002 nats a byte in a text, and half its time.
    judge = independent_judge(args.judge, list(engines.values()), dtype=torch.bfloat16)
    windows = None
    if args.data:
        files = text_files(args.data)
        windows, _ = held_out_text(engines["ar"], files, None, args.num, unwrap=True)
    elif "energies" in args.only:
        _log.info("no --data: energies over time need held-out text and are left out")
    results = "quality" if args.pair == "novels" else f"quality-{args.pair}"
    asked = Asked(
        units=args.units or ROOT / "build" / "quality" / args.pair,
        out=args.out or ROOT / "bench" / "results" / results,
        only=args.only,
        num=args.num,
        chunk=args.chunk,
        energy_windows=args.energy_windows,
        minutes=args.minutes,
    )
    print(run(asked, args.pair, engines, judge, _facts(args, engines, judge), windows))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m bench.quality", description=__doc__)
    parser.add_argument("--pair", choices=PAIRS, default="novels", help="which models (novels)")
    parser.add_argument("--nce", help="folder or hub id of an NCE energy, if none is beside it")
    parser.add_argument("--judge", help="as of edlm evaluate samples")
    parser.add_argument("--data", nargs="+", help="held-out text, for energies over time")
    parser.add_argument("--num", type=int, default=256, help="texts of each setting (256)")
    parser.add_argument("--energy-windows", type=int, default=32, help="of held-out text (32)")
    parser.add_argument("--chunk", type=int, default=8, help="texts in a unit of work (8)")
    parser.add_argument("--minutes", type=float, help="begin no unit after so long")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads (1)")
    parser.add_argument("--only", nargs="+", choices=EXPERIMENTS, default=EXPERIMENTS)
    parser.add_argument("--units", type=Path, help="of work, to go on from (build/quality/PAIR)")
    parser.add_argument("--out", type=Path, help="where the page goes (bench/results/quality)")
    return parser


def _engines(args: argparse.Namespace) -> dict[str, Engine]:
    """By energy; without that of NCE where the pair has none."""
    path, _ = PAIRS[args.pair]
    engines = {}
    for label in ENERGIES:
        energy = args.nce if label == "nce" and args.nce else label
        try:
            engines[label] = Engine.from_pretrained(path, energy=energy)
        except (FileNotFoundError, ValueError) as error:
            if label != "nce" or args.nce:
                raise
            _log.info("no NCE energy, its settings are left out: %s", error)
    return engines


def _facts(args: argparse.Namespace, engines: dict[str, Engine], judge: Judge) -> dict[str, str]:
    processor = platform.processor() or platform.machine()
    return {
        "models": f"{PAIRS[args.pair][1]}, {engines['ar'].denoiser.length} tokens",
        "energies": ", ".join(engines) + ("" if "nce" in engines else "; no NCE energy was there"),
        "judge": f"{Path(judge.name).name}, which had no part in the texts; blocks in bfloat16",
        "machine": f"{processor}, {args.threads} CPU thread(s), torch {torch.__version__}",
    }


if __name__ == "__main__":
    main()
