"""Numbers among the arguments of the ops on arrays, checked.

The compiled module itself would answer a wrong number with all it was given, arrays and all.
"""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any


def as_int(what: str, value: Any) -> int:
    """An int of 64 bits, else TypeError naming it."""
    if not isinstance(value, Integral) or not -(2**63) <= int(value) < 2**63:
        raise TypeError(f"{what} must be an int of 64 bits, got {value!r}")
    return int(value)


def as_float(what: str, value: Any) -> float:
    """A real number, else TypeError naming it."""
    if not isinstance(value, Real):
        raise TypeError(f"{what} must be a number, got {value!r}")
    return float(value)
