"""Why a sequence was not begun, or not ended."""

from __future__ import annotations

import math


class Cancelled(RuntimeError):
    """The sequence was taken out before its end."""


class Refused(RuntimeError):
    """Not now: it is worth a try after `retry_after` seconds."""

    def __init__(self, message: str, retry_after: float):
        super().__init__(message)
        self.retry_after = max(1, math.ceil(retry_after))


class QueueFull(Refused):
    """More wait already than may wait."""


class WaitedTooLong(Refused):
    """It waited for as long as a sequence may."""


class Closed(Refused):
    """The scheduler takes nothing more, or it did not let this end before it stopped."""
