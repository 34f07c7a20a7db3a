"""text8 as its users split it, in files that `edlm train` reads."""

from __future__ import annotations

import gzip
import lzma
import os
import zipfile
from pathlib import Path

from edlm_engine.training.config import require

SYMBOLS = b" abcdefghijklmnopqrstuvwxyz"
ENDS = {"train.txt": 0.9, "valid.txt": 0.95, "test.txt": 1.0}  # of the text, as shares of it


def prepare_text8(source: str | Path, out: str | Path) -> dict[str, int]:
    """Write train.txt, valid.txt and test.txt to the folder `out`; their characters by name.

    source: text8, or the beginning of it: plain, or packed as .zip, .gz or .xz. Its first 90 % are
        to train on and the next two 5 % to validate and to test: of the whole, 90, 5 and 5 million
        characters, as in the literature.

    Raises FileNotFoundError without a source, and ValueError for anything but a to z and spaces.
    """
    source, out = Path(source), Path(out)
    text = _read(source)
    other = text.translate(None, SYMBOLS)[:1]
    require(
        "source", not other, "of a to z and spaces", other and f"{other!r} at {text.index(other)}"
    )
    require("source", len(text) >= 20, "20 characters or more", len(text))
    out.mkdir(parents=True, exist_ok=True)
    counts, start = {}, 0
    for name, share in ENDS.items():
        end = round(len(text) * share)
        temporary = out / f"{name}.tmp"
        temporary.write_bytes(text[start:end])
        os.replace(temporary, out / name)
        counts[name], start = end - start, end
    return counts


def _read(source: Path) -> bytes:
    if not source.is_file():
        raise FileNotFoundError(f"no file {source}")
    if source.suffix == ".zip":
        with zipfile.ZipFile(source) as packed:
            names = packed.namelist()
            require("source", len(names) == 1, "a zip file of one file", names)
            return packed.read(names[0])
    unpack = {".gz": gzip.decompress, ".xz": lzma.decompress}.get(source.suffix, bytes)
    return unpack(source.read_bytes())
