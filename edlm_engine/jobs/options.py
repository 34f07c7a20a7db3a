"""The options of `edlm generate` as a job. As in `edlm_engine.options`, without torch."""

from __future__ import annotations

import argparse
from pathlib import Path

ONLY_JOBS = ("prompts", "shard_size", "batch_size", "ray", "workers")


def add_job_options(parser: argparse.ArgumentParser) -> None:
    """Options in a group of their own."""
    group = parser.add_argument_group(
        "many sequences", "to Parquet files in a folder; a run into the same one goes on there"
    )
    group.add_argument("--out", type=Path, help="folder for the results")
    group.add_argument(
        "--prompts",
        nargs="+",
        metavar="FILE",
        help="JSON lines or Parquet with prompt, suffix or both; --num sequences of each row",
    )
    group.add_argument("--shard-size", type=int, help="sequences of a file (default 256)")
    group.add_argument("--batch-size", type=int, help="of these at a time (default 16)")
    group.add_argument(
        "--ray",
        action="store_true",
        default=None,
        help="by the workers of the Ray cluster at RAY_ADDRESS, or of one on this machine",
    )
    group.add_argument("--workers", type=int, help="of --ray (default: as many as fit)")


def check_job_options(args: argparse.Namespace) -> None:
    """ValueError for options that do not go together."""
    if args.out is None:
        for name in ONLY_JOBS:
            if getattr(args, name) is not None:
                raise ValueError(f"--{name.replace('_', '-')} must come with --out")
        return
    for name in ("json", "watch", "stream", "record"):
        if getattr(args, name):
            raise ValueError(f"--{name} prints, --out writes: give one of them")
    if args.workers is not None and not args.ray:
        raise ValueError("--workers must come with --ray")
