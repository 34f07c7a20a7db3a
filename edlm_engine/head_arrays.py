"""The ops on arrays with the LM head fused; part of `edlm_engine.arrays`."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

Array = Any

HEAD_WORKSPACE_BYTES = 60 << 20
"""Most logits that exist at a time, in bytes, but one row at least."""


def head_rows(
    hidden: Array, weight: Array, bias: Array | None, per_row: Array, what: str
) -> Iterator[tuple[slice, Array]]:
    """Some rows at a time and their logits, which the next turn overwrites."""
    xp = _library({"hidden": hidden, "weight": weight, "bias": bias})
    if (
        hidden.ndim != 2
        or weight.ndim != 2
        or hidden.shape[1] != weight.shape[1]
        or len(weight) < 1
    ):
        raise ValueError(
            "hidden and weight must have shapes [R, D] and [V, D] with V >= 1, "
            f"got {list(hidden.shape)} and {list(weight.shape)}"
        )
    if hidden.dtype != weight.dtype or (bias is not None and bias.dtype != weight.dtype):
        got = [str(x.dtype) for x in (hidden, weight, bias) if x is not None]
        raise ValueError(f"hidden, weight and bias must share a dtype, got {got}")
    rows, vocab = len(hidden), len(weight)
    if bias is not None and tuple(bias.shape) != (vocab,):
        raise ValueError(f"bias must have shape [{vocab}], got {list(bias.shape)}")
    if tuple(getattr(per_row, "shape", ())) != (rows,):
        came = str(list(per_row.shape)) if hasattr(per_row, "shape") else type(per_row).__name__
        raise ValueError(f"{what} must have shape [{rows}], got {came}")
    fitting = max(1, min(rows, HEAD_WORKSPACE_BYTES // (vocab * weight.itemsize)))
    buffer = xp.empty((fitting, vocab), dtype=weight.dtype)
    # No rows are one part too, so that the other arguments are checked all the same.
    for first in range(0, max(1, rows), fitting):
        part = slice(first, min(rows, first + fitting))
        logits = buffer[: part.stop - first]
        xp.matmul(hidden[part], weight.T, out=logits)
        if bias is not None:
            logits += bias
        yield part, logits


def joined(parts: list[tuple[Array, ...]], like: Array) -> tuple[Array, ...]:
    """What the parts of an op returned, one after another; a single part is not copied."""
    if len(parts) == 1:
        return parts[0]
    xp = _library({"hidden": like})
    return tuple(xp.concatenate(part) for part in zip(*parts, strict=True))


def _library(arrays: dict[str, Array]) -> Any:
    """NumPy or CuPy, whose product it is: an array of another library has none to be found."""
    given = {name: x for name, x in arrays.items() if x is not None}
    homes = {name: type(x).__module__.partition(".")[0] for name, x in given.items()}
    for name, home in homes.items():
        if home not in ("numpy", "cupy"):
            raise TypeError(
                f"{name} must be an array of NumPy or CuPy, which multiply, "
                f"got {type(given[name]).__name__}"
            )
        if home != homes["hidden"]:
            raise ValueError(f"{name} must be on the device of hidden")
    if homes["hidden"] == "cupy":
        import cupy

        return cupy
    for name, x in given.items():
        if x.dtype != np.float32:
            raise ValueError(
                f"{name} must be float32, for NumPy has no fast product of {x.dtype}: convert it, "
                "or take edlm_engine.ops"
            )
    return np
