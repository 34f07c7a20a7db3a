"""A job by one process, or by every one of several its share."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tqdm import tqdm

from edlm_engine.engine import Engine
from edlm_engine.jobs.job import Job
from edlm_engine.jobs.shards import open_folder, write_shard


def run_job(
    job: Job,
    make_engine: Callable[[], Engine],
    out: str | Path,
    *,
    rank: int = 0,
    world_size: int = 1,
    progress: bool = False,
) -> None:
    """Make the shards that are not in the folder `out` yet: of these every `world_size`-th.

    Processes need nothing but the folder in common. One that is stopped loses the shard it was at;
    run again, with as many processes as you like, the job goes on with what is missing. The engine
    is made only where there is something to do.

    Raises ValueError if the folder holds another job; what a single sequence raises is its `error`.
    """
    out = Path(out)
    missing = set(open_folder(out, job))
    mine = [shard for shard in job.shards if shard % world_size == rank and shard in missing]
    engine = make_engine() if mine else None
    for shard in tqdm(mine, unit="shard", disable=not progress):
        assert engine is not None
        write_shard(out, shard, job.make(engine, shard))


def place_of_process() -> tuple[int, int, int]:
    """(rank, world size, rank on this machine) as torchrun sets them; (0, 1, 0) without it.

    Raises ValueError for values that do not fit together.
    """
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    rank, world_size, local = (
        int(os.environ.get(name, default)) for name, default in zip(names, (0, 1, 0), strict=True)
    )
    if not 0 <= rank < world_size:
        raise ValueError(f"RANK must be in [0, WORLD_SIZE = {world_size}), got {rank}")
    return rank, world_size, local
