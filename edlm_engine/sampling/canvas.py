"""From prompt, suffix, canvas and seed to the first xt and one seed per sequence."""

from collections.abc import Sequence
from numbers import Integral, Number
from typing import Any

import torch
from torch import Tensor

from edlm_engine import ops

Tokens = str | Sequence[int] | Tensor | Sequence[str] | Sequence[Sequence[int]]


def sequence_seeds(seed: int | Sequence[int] | Tensor, batch_size: int) -> Tensor:
    """Seeds [B] int64: as given, one per sequence, or streams (seed, b) of a single one."""
    if isinstance(seed, Integral):
        return ops.stream_keys(int(seed), torch.arange(batch_size))
    seeds = seed.tolist() if hasattr(seed, "tolist") else seed
    if not (isinstance(seeds, Sequence) and all(isinstance(s, Integral) for s in seeds)):
        raise TypeError(f"seed must be an int or one int per sequence, got {seed!r}")
    if len(seeds) != batch_size:
        raise ValueError(f"seed must hold {batch_size} values, one per sequence, got {len(seeds)}")
    return torch.stack([ops.stream_keys(int(s)) for s in seeds])


def check_canvas(canvas: Tensor, batch_size: int, length: int, vocab_size: int) -> Tensor:
    """The canvas [B, L] on the CPU, checked: int64 tokens, the mask where free."""
    if not isinstance(canvas, Tensor):
        raise TypeError(f"canvas must be a tensor, got {type(canvas).__name__}")
    if canvas.dtype != torch.int64 or canvas.shape != (batch_size, length):
        got = f"{str(canvas.dtype).removeprefix('torch.')} {list(canvas.shape)}"
        raise ValueError(f"canvas must be int64 with shape [{batch_size}, {length}], got {got}")
    canvas = canvas.cpu()
    _check_range("canvas", canvas.flatten(), vocab_size)
    return canvas.clone()


def compose_canvas(
    prompt: Tokens | None,
    suffix: Tokens | None,
    batch_size: int,
    length: int,
    *,
    mask_id: int,
    vocab_size: int,
    tokenizer=None,
) -> Tensor:
    """[B, L] int64: each sequence's prompt, then masks, then its suffix."""
    heads = _token_rows("prompt", prompt, batch_size, tokenizer)
    tails = _token_rows("suffix", suffix, batch_size, tokenizer)
    canvas = torch.full((batch_size, length), mask_id, dtype=torch.int64)
    for b, (head, tail) in enumerate(zip(heads, tails, strict=True)):
        if len(head) + len(tail) > length:
            raise ValueError(
                f"prompt and suffix must fit the length {length}, "
                f"got {len(head)} + {len(tail)} tokens in sequence {b}"
            )
        canvas[b, : len(head)] = head
        canvas[b, length - len(tail) :] = tail
    for name, rows in (("prompt", heads), ("suffix", tails)):
        known = torch.cat(rows)
        _check_range(name, known, vocab_size)
        if (known == mask_id).any():
            raise ValueError(f"{name} must not hold the mask token {mask_id}; use canvas")
    return canvas


def _token_rows(name: str, tokens: Tokens | None, batch_size: int, tokenizer) -> list[Tensor]:
    """One 1-D int64 tensor per sequence; what is given once serves the whole batch."""
    tokens = [] if tokens is None else tokens
    tokens = tokens.tolist() if hasattr(tokens, "tolist") else tokens
    if not isinstance(tokens, Sequence):
        raise TypeError(f"{name} must be text or integer tokens, got {tokens!r}")
    if isinstance(tokens, str) or all(isinstance(token, Number) for token in tokens):
        return [_token_row(name, tokens, tokenizer)] * batch_size
    if len(tokens) != batch_size:
        raise ValueError(f"{name} must hold {batch_size} rows, one per sequence, got {len(tokens)}")
    return [_token_row(name, row, tokenizer) for row in tokens]


def _token_row(name: str, row: Any, tokenizer) -> Tensor:
    if isinstance(row, str):
        if tokenizer is None:
            raise ValueError(f"{name} is text, but the engine has no tokenizer: give token ids")
        row = tokenizer.encode(row)
        row = getattr(row, "ids", row)  # `tokenizers` wraps the ids, transformers does not
    row = row.tolist() if hasattr(row, "tolist") else row
    if not (isinstance(row, Sequence) and all(isinstance(token, Integral) for token in row)):
        raise TypeError(f"{name} must be text or integer tokens, got {row!r}")
    return torch.tensor(row, dtype=torch.int64)


def _check_range(name: str, tokens: Tensor, vocab_size: int) -> None:
    wrong = tokens[(tokens < 0) | (tokens >= vocab_size)]
    if len(wrong):
        raise ValueError(f"{name} must hold tokens in [0, {vocab_size}), got {int(wrong[0])}")
