"""The folder of a job: what it is, and a Parquet file for each shard, each whole or absent."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Callable
from pathlib import Path
from typing import Any

from edlm_engine.checkpoints.files import read_json
from edlm_engine.jobs.job import Job

MANIFEST = "job.json"


def shard_file(out: Path, shard: int) -> Path:
    """Where a shard lies."""
    return out / f"shard-{shard:06d}.parquet"


def open_folder(out: Path, job: Job) -> list[int]:
    """The shards that are still to be made. Several processes may call it at a time.

    Raises ValueError if the folder holds another job.
    """
    out.mkdir(parents=True, exist_ok=True)
    file, manifest = out / MANIFEST, job.manifest()
    if not file.is_file():
        text = json.dumps(manifest, indent=2) + "\n"
        _write_whole(file, lambda part: part.write_text(text, encoding="utf-8"))
    found = read_json(file)
    differ = [name for name in sorted({*found, *manifest}) if found.get(name) != manifest.get(name)]
    if differ:
        told = "; ".join(f"{n} was {found.get(n)!r}, is {manifest.get(n)!r}" for n in differ)
        raise ValueError(f"{out} holds another job: {told}. Give another --out")
    return [shard for shard in job.shards if not shard_file(out, shard).is_file()]


def write_shard(out: Path, shard: int, table: Any) -> None:
    """Write a shard. Two that write the same one at a time write the same rows: either stays."""
    import pyarrow.parquet

    file = shard_file(out, shard)
    _write_whole(file, lambda part: pyarrow.parquet.write_table(table, part))
    for left in out.glob(f".{file.name}.*"):  # by a process that was killed as it wrote
        left.unlink(missing_ok=True)


def count_errors(out: Path, job: Job) -> tuple[int, int]:
    """(sequences there, those of them that have an error)."""
    import pyarrow.parquet

    rows = failed = 0
    for file in map(shard_file, [out] * len(job.shards), job.shards):
        if file.is_file():
            errors = pyarrow.parquet.read_table(file, columns=["error"]).column("error")
            rows += len(errors)
            failed += len(errors) - errors.null_count
    return rows, failed


def _write_whole(file: Path, write: Callable[[Path], Any]) -> None:
    part = file.with_name(f".{file.name}.{uuid.uuid4().hex}")
    try:
        write(part)
        os.replace(part, file)
    except FileNotFoundError:
        if not file.is_file():  # else another process has written it and cleared up
            raise
    finally:
        part.unlink(missing_ok=True)
