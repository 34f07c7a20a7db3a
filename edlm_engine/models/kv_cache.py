"""Keys and values that a left-to-right model keeps, for sequences each at a place of its own."""

from __future__ import annotations

import torch
from torch import Tensor

from edlm_engine.models.layers import require_positive


class KVCache:
    """What `hidden_step` goes on from; made by a model's `start_cache`.

    It holds `rows` sequences of up to `length` tokens. Nothing has to be taken back: a step that
    starts before the end of what a sequence has cached overwrites the rest.
    """

    def __init__(self, rows: int, length: int, bos_id: int | None, device: torch.device) -> None:
        require_positive("rows", rows)
        require_positive("length", length)
        self.rows, self.length, self.bos_id = rows, length, bos_id
        self.first = 0 if bos_id is not None else 1
        # A sequence may start a step at a row of `hidden` from `first` up to this.
        self.filled = torch.full((rows,), self.first, dtype=torch.int64, device=device)
        self.mask = torch.empty(0)  # [rows, 1, count, slots], what a step's rows may look at
        self._layers: dict[int, tuple[Tensor, Tensor]] = {}
        self._slots = torch.empty(0)  # [rows, count], where a step's keys belong
        self._used = 0  # slots that a step looks at
        self._reach = 0  # places that any sequence may have filled, as far as the host knows

    def begin(self, tokens: Tensor, start: Tensor, count: int) -> tuple[Tensor, Tensor]:
        """Prepare a step: what the model is given, [rows, count], and the places it has there.

        For the rows `start` to `start` + `count` - 1 of `hidden` of tokens [rows, L].
        """
        self._check(tokens, start, count)
        length = tokens.shape[1]
        rows = start[:, None] + torch.arange(count, device=start.device)
        given = tokens.gather(1, (rows - 1).clamp(0, length - 1))
        if self.bos_id is not None:
            given = given.masked_fill(rows == 0, self.bos_id)
        places = (rows - self.first).clamp(max=length - 1 - self.first)
        # Slot 0 is for what lies beyond the sequence; nothing looks there.
        self._slots = torch.where(rows < length, places + 1, 0)
        # Where the tokens lie on a device, asking it how far they are would wait for it.
        reach = self._reach if start.is_cuda else int(start.max()) - self.first
        self._reach = min(reach + count, length - self.first)
        self._used = 1 + self._reach
        slots = torch.arange(self._used, device=start.device)
        self.mask = ((slots > 0) & (slots <= places[..., None] + 1))[:, None]
        self.filled = (start + count).clamp(max=length)
        return given, places

    def write(self, layer: int, keys: Tensor, values: Tensor) -> tuple[Tensor, Tensor]:
        """Keep a layer's new keys and values [rows, heads, count, D]; all it may look at so far."""
        if layer not in self._layers:
            # Zeros, since even what the mask hides must be finite.
            self._layers[layer] = tuple(  # type: ignore[assignment]
                x.new_zeros(*x.shape[:2], 1 + self.length, x.shape[3]) for x in (keys, values)
            )
        slots = self._slots[:, None, :, None].to(keys.device)
        for kept, new in zip(self._layers[layer], (keys, values), strict=True):
            kept.scatter_(2, slots.expand_as(new), new)
        whole_keys, whole_values = self._layers[layer]
        return whole_keys[:, :, : self._used], whole_values[:, :, : self._used]

    def keep(self, rows: Tensor) -> None:
        """Go on with these sequences only, `rows` [n] int64, in this order; copies what is kept."""
        self.filled, self.rows = self.filled[rows], len(rows)
        self._layers = {
            layer: (keys[rows.to(keys.device)], values[rows.to(values.device)])
            for layer, (keys, values) in self._layers.items()
        }

    def _check(self, tokens: Tensor, start: Tensor, count: int) -> None:
        require_positive("count", count)
        if len(tokens) != self.rows or not self.first < tokens.shape[1] <= self.length:
            raise ValueError(
                f"tokens must have shape [{self.rows}, {self.first + 1} to {self.length}], as the "
                f"cache, got {list(tokens.shape)}"
            )
        if start.dtype != torch.int64 or start.shape != (self.rows,):
            raise ValueError(
                f"start must be int64 with shape [{self.rows}], got {start.dtype} "
                f"{list(start.shape)}"
            )
        if start.is_cuda:
            return
        wrong = (start < self.first) | (start > self.filled)
        if wrong.any():
            row = int(wrong.nonzero()[0])
            raise ValueError(
                f"start of row {row} must be in [{self.first}, {int(self.filled[row])}], what it "
                f"has cached, got {int(start[row])}"
            )


def cache_length(length: int | None, longest: int) -> int:
    """Of a cache for sequences of `length`, None for the model's own `longest`."""
    if length is not None and length > longest:
        raise ValueError(f"length must be at most {longest}, the model's, got {length}")
    return longest if length is None else length
