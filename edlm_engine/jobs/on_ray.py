"""A job as a Ray Data pipeline: shards in, tables out, by a pool of workers with an engine each."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from edlm_engine.engine import Engine
from edlm_engine.jobs.job import Job
from edlm_engine.jobs.shards import open_folder, write_shard


def generate(
    job: Job,
    make_engine: Callable[[], Engine],
    out: str | Path,
    *,
    workers: int | None = None,
    cpus: float = 1,
    gpus: float = 0,
    progress: bool = False,
) -> None:
    """What `edlm_engine.jobs.run_job` does, by the workers of a Ray cluster.

    That is the cluster this process is connected to, else the one at RAY_ADDRESS, else one that is
    started on this machine and ended afterwards.

    make_engine: called once in each worker, where files that it names must be. The folder `out` is
        this process's alone: tables come back to it.
    workers: None is as many as fit now. cpus, gpus: of each; with a GPU, `make_engine` should ask
        for device "cuda".

    A shard whose worker is lost is made again by another, with the same rows. Raises ValueError if
    the folder holds another job or no worker fits, ImportError without `ray[data]`, and what
    `make_engine` raises.
    """
    out = Path(out)
    missing = open_folder(out, job)
    if not missing:
        return
    with _cluster():
        import ray
        import ray.data

        pool = min(workers or _fitting(cpus, gpus), len(missing))
        job_ref = ray.put(job)
        # Rows of the driver's own: reading them takes none of the CPUs that the workers have.
        shards = ray.data.from_items(
            [{"shard": n} for n in missing], override_num_blocks=len(missing)
        )
        made = shards.map_batches(
            ShardMaker,
            fn_constructor_args=(job_ref, make_engine),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=pool),
            num_cpus=cpus,
            num_gpus=gpus,
        )
        with tqdm(total=len(missing), unit="shard", disable=not progress) as bar:
            for row in made.iter_rows():
                write_shard(out, int(row["shard"]), _table(row["table"]))
                bar.update()


class ShardMaker:
    """A worker."""

    def __init__(self, job_ref: Any, make_engine: Callable[[], Engine]):
        import ray

        self.job: Job = ray.get(job_ref)
        self.engine = make_engine()

    def __call__(self, batch: dict[str, np.ndarray]) -> dict[str, Any]:
        shards = batch["shard"].tolist()
        tables = [_bytes(self.job.make(self.engine, shard)) for shard in shards]
        return {"shard": shards, "table": tables}


@contextmanager
def _cluster() -> Iterator[None]:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    try:
        import ray
    except ImportError as error:
        raise ImportError("this needs Ray: pip install 'edlm_engine[ray]'") from error
    if ray.is_initialized():
        yield
        return
    ray.init(include_dashboard=False if "RAY_ADDRESS" not in os.environ else None)
    try:
        yield
    finally:
        ray.shutdown()


def _fitting(cpus: float, gpus: float) -> int:
    import ray

    there = ray.cluster_resources()
    asked = {name: number for name, number in (("CPU", cpus), ("GPU", gpus)) if number}
    fitting = min(int(there.get(name, 0) // number) for name, number in asked.items())
    if not fitting:
        raise ValueError(f"a worker takes {asked}, but the cluster has {there}")
    return fitting


def _bytes(table: Any) -> bytes:
    import pyarrow

    sink = pyarrow.BufferOutputStream()
    with pyarrow.ipc.new_stream(sink, table.schema) as writer:
        writer.write_table(table)
    return sink.getvalue().to_pybytes()


def _table(data: bytes) -> Any:
    import pyarrow

    return pyarrow.ipc.open_stream(data).read_all()
