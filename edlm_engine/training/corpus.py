"""Plain text files -> one stream of tokens -> the windows a training step or an evaluation sees."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from fnmatch import fnmatch
from functools import lru_cache
from io import StringIO
from pathlib import Path
from statistics import quantiles
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edlm_engine.checkpoints.tokenizer import Tokenizer
from edlm_engine.training.config import RunConfig, require

STRAIGHT = str.maketrans("“”‘’`\u00a0\u000c\t", "\"\"'''   ", "_*")
WRAP_COLUMNS = 100


def text_files(paths: Iterable[str | Path]) -> list[Path]:
    """The files named, and the *.txt files of the folders named, sorted; all must exist."""
    files: list[Path] = []
    for path in map(Path, paths):
        if path.is_dir():
            files += path.glob("*.txt")
        elif path.is_file():
            files.append(path)
        else:
            raise FileNotFoundError(f"no text file or folder {path}")
    if not files:
        raise FileNotFoundError("no *.txt files in the data given")
    return sorted(set(files))


def split_held_out(files: list[Path], patterns: Sequence[str]) -> tuple[list[Path], list[Path]]:
    """(training files, held-out files): a file is held out if its name matches a pattern."""
    unused = [p for p in patterns if not any(fnmatch(file.name, p) for file in files)]
    if unused:
        raise ValueError(f"held_out must match file names of the data, {unused} match none")
    held_out = [file for file in files if any(fnmatch(file.name, p) for p in patterns)]
    return [file for file in files if file not in held_out], held_out


def read_text(path: Path, unwrap: bool = True) -> str:
    """A document. With `unwrap`, one paragraph a line, straight quotes, single spaces.

    Raises ValueError naming file and byte for what is not UTF-8 text.
    """
    data = path.read_bytes()
    try:
        text = data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path} is not UTF-8 text: byte {error.start} is {data[error.start]:#04x}, "
            f"{error.reason}"
        ) from error
    if "\0" in text:  # UTF-16, mostly
        raise ValueError(f"{path} is not UTF-8 text: byte {data.index(0)} is 0x00")
    text = StringIO(text.removeprefix("\ufeff"), newline=None).read()  # every line ends alike
    return unwrap_text(text) if unwrap else text


def unwrap_text(text: str) -> str:
    """Undo the line wrapping of plain-text books.

    A blank line ends a paragraph. Where lines are wrapped (90 % under 100 columns), a line is
    joined to the next one unless it is clearly short of the margin and ends a sentence, which is
    how paragraphs show in books without blank lines.
    """
    lines = [" ".join(line.split()) for line in text.translate(STRAIGHT).splitlines()]
    widths = [len(line) for line in lines if line]
    margin = quantiles(widths, n=10)[-1] if len(widths) > 1 else 0.0
    if margin >= WRAP_COLUMNS:
        return "\n".join(line for line in lines if line)
    paragraphs, current = [], []
    for line in lines:
        if line:
            current.append(line)
        if current and (not line or _ends_paragraph(line, margin)):
            paragraphs.append(" ".join(current))
            current = []
    return "\n".join([*paragraphs, " ".join(current)]).strip()


def _ends_paragraph(line: str, margin: float) -> bool:
    return len(line) < 0.8 * margin and re.search(r"[.!?:;-]['\")]*$", line) is not None


def text_stream(config: RunConfig, texts: Sequence[str], tokenizer: Tokenizer) -> Tensor:
    """`token_stream` of the training texts of a run, of which there must be one."""
    require("held_out", len(texts) > 0, "leaving files to train on", config.held_out)
    return token_stream(texts, tokenizer)


def token_stream(texts: Sequence[str], tokenizer: Tokenizer) -> Tensor:
    """All documents, each ended by the token for that if there is one, as one int32 tensor."""
    end = np.array([] if tokenizer.end_id is None else [tokenizer.end_id], dtype=np.int32)
    parts = [part for text in texts for part in (np.array(tokenizer.encode(text), np.int32), end)]
    return torch.from_numpy(np.concatenate(parts))


def training_windows(stream: Tensor, length: int, batch_size: int, step: int, seed: int) -> Tensor:
    """The batch [batch_size, length] int64 of one step: a pure function of (seed, step).

    Each epoch cuts the stream into adjacent windows from a random offset and takes every window
    once, in a random order.
    """
    count = (len(stream) - length + 1) // length
    if count < 1:
        raise ValueError(f"the data must hold at least {2 * length - 1} tokens, got {len(stream)}")
    place = torch.arange(step * batch_size, (step + 1) * batch_size)
    epochs = place // count
    starts = torch.empty_like(place)
    for epoch in epochs.unique().tolist():
        here = epochs == epoch
        starts[here] = _epoch_starts(count, length, seed, epoch)[place[here] % count]
    return stream[starts[:, None] + torch.arange(length)].long()


@lru_cache(maxsize=2)
def _epoch_starts(count: int, length: int, seed: int, epoch: int) -> Tensor:
    random = np.random.default_rng((seed, epoch))
    return torch.from_numpy(random.permutation(count) * length + random.integers(length))


def held_out_windows(
    data: Iterable[str | Path], settings: dict[str, Any], tokenizer: Tokenizer, at_most: int
) -> tuple[Tensor, float]:
    """(`evaluation_windows` of what a run held out, characters a token) by its stored settings."""
    _, files = split_held_out(text_files(data), settings["held_out"])
    texts = [read_text(file, settings["unwrap"]) for file in files]
    stream = token_stream(texts, tokenizer)
    windows = evaluation_windows(stream, settings["length"], at_most)
    return windows, sum(map(len, texts)) / len(stream)


def evaluation_windows(stream: Tensor, length: int, at_most: int) -> Tensor:
    """Up to `at_most` windows [n, length] int64, evenly spread, none overlapping."""
    count = len(stream) // length
    if count < 1:
        raise ValueError(f"held-out data must hold at least {length} tokens, got {len(stream)}")
    chosen = torch.linspace(0, count - 1, min(count, at_most)).round().long() * length
    return stream[chosen[:, None] + torch.arange(length)].long()
