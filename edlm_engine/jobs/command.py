"""`edlm generate --out`."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial

from edlm_engine.engine import Engine
from edlm_engine.jobs import on_ray
from edlm_engine.jobs.job import job_of
from edlm_engine.jobs.run import place_of_process, run_job
from edlm_engine.jobs.shards import count_errors
from edlm_engine.sampling.config import GenerationConfig

SAME = ("model", "energy", "weights", "mask_id", "subfolder", "revision", "tokenizer", "dtype")


def generate_job(
    args: argparse.Namespace,
    make_engine: Callable[[argparse.Namespace], Engine],
    config: GenerationConfig,
) -> None:
    """Run the job, or this process's share of it.

    Sequences that failed are told of, and no more: an exit status would end the other processes.
    """
    sizes = {name: getattr(args, name) for name in ("shard_size", "batch_size")}
    job = job_of(
        args.prompts,
        config=config,
        seed=args.seed,
        num=args.num,
        prompt=args.prompt,
        suffix=args.suffix,
        facts={name: getattr(args, name) for name in SAME},
        **{name: size for name, size in sizes.items() if size is not None},
    )
    rank, world_size, local = place_of_process()
    if args.device == "cuda" and world_size > 1:
        args.device = f"cuda:{local}"
    engine = partial(make_engine, args)
    if not args.ray:
        run_job(job, engine, args.out, rank=rank, world_size=world_size, progress=args.progress)
    else:
        gpus = 1 if args.device.startswith("cuda") else 0
        options = {"workers": args.workers, "gpus": gpus, "cpus": args.threads or 1}
        on_ray.generate(job, engine, args.out, **options, progress=args.progress)
    there, failed = count_errors(args.out, job)
    whose = f" (process {rank} of {world_size})" if world_size > 1 else ""
    note = f", {failed} of them failed: see their error" if failed else ""
    print(f"{there} of {job.total} sequences in {args.out}{whose}{note}")
