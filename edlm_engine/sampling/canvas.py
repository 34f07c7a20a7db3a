"""From prompt, suffix, canvas and seed to the first xt and one seed per sequence."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Number
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edlm_engine import ops

Tokens = str | Sequence[int] | Tensor | Sequence[str] | Sequence[Sequence[int]]
# Messages {"role": ..., "content": ...} of one chat.
Chat = Sequence[Mapping[str, str]]

# Sequences of Python, but none of tokens.
TEXT = (str, bytes, bytearray, memoryview)


def sequence_seeds(seed: int | Sequence[int] | Tensor, batch_size: int) -> Tensor:
    """Seeds [B] int64: as given, one per sequence, or streams (seed, b) of a single one."""
    if isinstance(seed, Integral):
        return ops.stream_keys(int(seed), torch.arange(batch_size))
    seeds = _integers("seed", seed)
    if seeds is None or seeds.dim() != 1:
        raise TypeError(f"seed must be an int or one int per sequence, got {_shown(seed)}")
    if len(seeds) != batch_size:
        raise ValueError(f"seed must hold {batch_size} values, one per sequence, got {len(seeds)}")
    return ops.stream_keys(seeds)


def drawn_seeds(generator: torch.Generator | Sequence[torch.Generator], batch_size: int) -> Tensor:
    """Seeds [B] int64: B draws of one generator, or one draw of each of B; they advance."""
    if isinstance(generator, torch.Generator):
        return ops.stream_keys(_words(generator, batch_size))
    each = list(generator) if isinstance(generator, Sequence) else []
    if not each or not all(isinstance(own, torch.Generator) for own in each):
        raise TypeError(
            f"generator must be a torch.Generator or one per sequence, got {_shown(generator)}"
        )
    if len(each) != batch_size:
        raise ValueError(
            f"generator must hold {batch_size} generators, one per sequence, got {len(each)}"
        )
    return ops.stream_keys(torch.cat([_words(own, 1) for own in each]))


def _words(generator: torch.Generator, count: int) -> Tensor:
    range_ = -(2**63), 2**63 - 1
    return torch.randint(*range_, (count,), generator=generator, device=generator.device).cpu()


def _integers(name: str, values: Any) -> Tensor | None:
    """Integers of a tensor, an array or a sequence as int64 on the CPU; None if it holds others.

    Numbers from 2^63 to 2^64 wrap around, as in a tensor of their bits.
    """
    if isinstance(values, np.ndarray) and values.dtype.kind in "iu":
        return torch.from_numpy(values.astype(np.int64))
    if isinstance(values, Tensor):
        whole = not (
            values.is_floating_point() or values.is_complex() or values.dtype == torch.bool
        )
        return values.cpu().long() if whole else None
    if isinstance(values, TEXT) or not isinstance(values, Sequence):
        return None
    if not all(isinstance(value, Integral) for value in values):
        return None
    outside = next((v for v in values if not -(2**63) <= v < 2**64), None)
    if outside is not None:
        raise ValueError(f"{name} must hold numbers of 64 bits, got {outside}")
    words = [value - 2**64 if value >= 2**63 else value for value in map(int, values)]
    return torch.tensor(words, dtype=torch.int64)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


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


@dataclass(frozen=True)
class Known:
    """The known tokens at both ends of B sequences: in a row, or one row that serves them all."""

    head: Tensor  # of all prompts
    head_sizes: Tensor  # [B] or [1]
    tail: Tensor  # of all suffixes
    tail_sizes: Tensor  # [B] or [1]

    @property
    def most(self) -> int:
        """The most known tokens of any sequence."""
        return int((self.head_sizes + self.tail_sizes).max())

    def canvas(self, batch_size: int, length: int, mask_id: int) -> Tensor:
        """[B, L] int64: each sequence's prompt, then masks, then its suffix."""
        too_long = (self.head_sizes + self.tail_sizes > length).nonzero().flatten()
        if len(too_long):
            b = int(too_long[0])
            head, tail = (
                int(sizes.expand(batch_size)[b]) for sizes in (self.head_sizes, self.tail_sizes)
            )
            raise ValueError(
                f"prompt and suffix must fit the length {length}, "
                f"got {head} + {tail} tokens in sequence {b}"
            )
        canvas = torch.full((batch_size, length), mask_id, dtype=torch.int64)
        position = torch.arange(length)
        for known, sizes, places in (
            (self.head, self.head_sizes, position < self.head_sizes[:, None]),
            (self.tail, self.tail_sizes, position >= length - self.tail_sizes[:, None]),
        ):
            if len(known):
                served = batch_size // len(sizes)
                canvas[places.expand(batch_size, -1)] = known.repeat(served)
        return canvas


def known_tokens(
    prompt: Tokens | Chat | Sequence[Chat] | None,
    suffix: Tokens | None,
    batch_size: int,
    *,
    mask_id: int,
    vocab_size: int,
    tokenizer=None,
) -> Known:
    """What is known of each sequence, as tokens."""
    ends = []
    for name, given in (("prompt", prompt), ("suffix", suffix)):
        tokens, sizes = _tokens(name, given, batch_size, tokenizer)
        _check_range(name, tokens, vocab_size)
        if (tokens == mask_id).any():
            raise ValueError(f"{name} must not hold the mask token {mask_id}; use canvas")
        ends += [tokens, sizes]
    return Known(*ends)


def _tokens(
    name: str, tokens: Tokens | Chat | Sequence[Chat] | None, batch_size: int, tokenizer
) -> tuple[Tensor, Tensor]:
    """All sequences' tokens in a row, and how many each has [B]; or those of all, and [1]."""
    tokens = () if tokens is None else tokens
    whole = None if isinstance(tokens, str) else _integers(name, tokens)
    if isinstance(tokens, str) or _is_chat(tokens) or (whole is not None and whole.dim() == 1):
        row = _token_row(name, tokens, tokenizer)
        return row, torch.tensor([len(row)])
    if whole is None and isinstance(tokens, Sequence) and not isinstance(tokens, TEXT):
        by_rows = not any(isinstance(row, Number) for row in tokens)
    else:
        by_rows = whole is not None and whole.dim() == 2
    if not by_rows:
        raise TypeError(f"{name} must be text or integer tokens, got {_shown(tokens)}")
    if len(tokens) != batch_size:
        raise ValueError(f"{name} must hold {batch_size} rows, one per sequence, got {len(tokens)}")
    if whole is not None:
        return whole.flatten(), torch.full((batch_size,), whole.shape[1])
    rows = [_token_row(name, row, tokenizer) for row in tokens]
    return torch.cat(rows), torch.tensor([len(row) for row in rows])


def _token_row(name: str, row: Any, tokenizer) -> Tensor:
    if isinstance(row, str):
        if tokenizer is None:
            raise ValueError(f"{name} is text, but the engine has no tokenizer: give token ids")
        row = tokenizer.encode(row)
        row = getattr(row, "ids", row)  # `tokenizers` wraps the ids, transformers does not
    elif name == "prompt" and _is_chat(row):
        row = _chat_tokens(name, row, tokenizer)
    ids = _integers(name, row)
    if ids is None or ids.dim() != 1:
        raise TypeError(f"{name} must be text or integer tokens, got {_shown(row)}")
    return ids


def _is_chat(row: Any) -> bool:
    is_list = isinstance(row, Sequence) and not isinstance(row, TEXT)
    return is_list and any(isinstance(message, Mapping) for message in row)


def _chat_tokens(name: str, chat: Chat, tokenizer) -> Sequence[int]:
    """Ids of a chat by the tokenizer's own template, up to where the answer begins."""
    for i, message in enumerate(chat):
        fields = message if isinstance(message, Mapping) else {}
        if not all(isinstance(fields.get(key), str) for key in ("role", "content")):
            raise TypeError(
                f"{name} must hold messages with role and content, both text, "
                f"message {i} is {_shown(message)}"
            )
    if getattr(tokenizer, "chat_template", None) is None:
        raise ValueError(
            f"{name} holds messages, but the engine has no tokenizer with a chat template: "
            "give text or token ids"
        )
    try:
        return tokenizer.apply_chat_template(
            list(chat), add_generation_prompt=True, return_dict=False
        )
    except ImportError:
        raise
    except Exception as error:  # whatever the template raises, or stumbles over
        raise ValueError(
            f"{name} must hold messages that the chat template takes: {error}"
        ) from error


def _check_range(name: str, tokens: Tensor, vocab_size: int) -> None:
    wrong = tokens[(tokens < 0) | (tokens >= vocab_size)]
    if len(wrong):
        raise ValueError(f"{name} must hold tokens in [0, {vocab_size}), got {int(wrong[0])}")
