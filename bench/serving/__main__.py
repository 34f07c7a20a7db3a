"""A server under load. Stop it at any time; the same command goes on with what is missing."""

from __future__ import annotations

import argparse
import logging
import platform
from pathlib import Path

from bench.serving.load import ROOT
from bench.serving.measure import measure
from bench.serving.page import write
from edlm_engine.options import add_serving


def main(args: argparse.Namespace | None = None) -> None:
    if args is None:
        parser = argparse.ArgumentParser(prog="python -m bench.serving", description=__doc__)
        add_serving(parser)
        args = parser.parse_args()
        logging.basicConfig(format="%(message)s", level=logging.INFO)
    results = measure(args.units or ROOT / "build" / "serving", args.seconds, args.requests)
    out = args.out or ROOT / "bench" / "results" / "serving"
    facts = {"machine": _machine(), "command": _command(args)}
    print(write(out, results, facts | ({"note": args.note} if args.note else {})))


def _machine() -> str:
    names = [
        line.partition(":")[2].strip()
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
        if line.startswith("model name")
    ]
    return f"{len(names)} cores of {names[0] if names else platform.machine()}"


def _command(args: argparse.Namespace) -> str:
    return f"`edlm bench serving --seconds {args.seconds:g} --requests {args.requests}`"


if __name__ == "__main__":
    main()
