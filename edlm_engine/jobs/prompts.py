"""What a job is given: prompts from JSON lines or Parquet, a row for each."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

LINES = (".jsonl", ".ndjson", ".json")
READ = ("prompt", "suffix")


def read_prompts(paths: Sequence[str | Path]) -> tuple[Any, str]:
    """(all rows as an Arrow table, a digest of them), in the order of the files.

    A row has a `prompt` (text, token ids or a chat), a `suffix` (text or token ids) or both, either
    of which may be null, and any other columns, which the results repeat. A folder stands for the
    *.parquet files in it, by name. A column has one type in all rows.

    Raises FileNotFoundError, ImportError without pyarrow, and ValueError with file and line for
    what is no such row.
    """
    import pyarrow

    tables, digest = [], hashlib.sha256()
    for file in _files(paths):
        digest.update(file.read_bytes())
        tables.append(_read(file))
    try:
        table = pyarrow.concat_tables(tables, promote_options="permissive")
    except pyarrow.ArrowException as error:
        raise ValueError(f"prompts must have one type in a column in all files: {error}") from error
    if not table.num_rows:
        raise ValueError(f"prompts must hold a row at least, {', '.join(map(str, paths))} has none")
    if not set(READ) & set(table.column_names):
        raise ValueError(
            f"prompts must have a column prompt or suffix, got {', '.join(table.column_names)}"
        )
    return table, digest.hexdigest()


def _files(paths: Sequence[str | Path]) -> list[Path]:
    files = []
    for path in map(Path, paths):
        found = sorted(path.glob("*.parquet")) if path.is_dir() else [path]
        if not found or not found[0].is_file():
            raise FileNotFoundError(f"no prompts at {path}")
        files += found
    return files


def _read(file: Path) -> Any:
    import pyarrow
    import pyarrow.parquet

    try:
        if file.suffix == ".parquet":
            return pyarrow.parquet.read_table(file)
        if file.suffix in LINES:
            return pyarrow.Table.from_pylist(_rows(file))
    except pyarrow.ArrowException as error:
        raise ValueError(f"{file}: {error}") from error
    raise ValueError(f"prompts must be .parquet or {', '.join(LINES)} (a row a line), got {file}")


def _rows(file: Path) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    with file.open(encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:
                raise ValueError(f"{file} line {number} is not JSON: {error}") from error
            if not isinstance(row, dict):
                raise ValueError(f"{file} line {number} must be a JSON object, got {line[:40]!r}")
            rows.append(row)
    names = {name for row in rows for name in row}  # from_pylist looks at the first row's alone
    return [dict.fromkeys(sorted(names)) | row for row in rows]
