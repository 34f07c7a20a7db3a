"""The folder of a training run: one process at a time writes it, and damage is named."""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path


@contextmanager
def sole_run(out: Path) -> Iterator[None]:
    """Hold the folder, made if need be, for the body; the system lets go of it if the process dies.

    Raises FileExistsError if another run holds it, ImportError if what training needs is missing.
    """
    for package in ("accelerate", "filelock", "matplotlib"):
        if find_spec(package) is None:
            raise ImportError(f"training needs {package}: pip install 'edlm_engine[training]'")
    from filelock import FileLock, Timeout

    out.mkdir(parents=True, exist_ok=True)
    lock = FileLock(out / ".lock", blocking=False)
    try:
        lock.acquire()
    except Timeout:
        raise FileExistsError(f"another run is writing to {out}: choose another out") from None
    try:
        yield
    finally:
        lock.release()


def require_whole(checkpoint: Path) -> None:
    """Raise ValueError naming the first damaged file of torch in a checkpoint."""
    for file in sorted(file for file in checkpoint.rglob("*") if file.suffix in (".bin", ".pkl")):
        try:
            with zipfile.ZipFile(file) as archive:  # what torch writes, with check sums
                damaged = archive.testzip()
        except zipfile.BadZipFile as error:
            raise ValueError(f"{file} is damaged: {error}") from error
        if damaged is not None:
            raise ValueError(f"{file} is damaged: {damaged} is not what was written")
