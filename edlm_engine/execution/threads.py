"""How many CPU threads the models run on."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from threading import Lock, Thread

import torch

_lock = Lock()


@contextmanager
def one_thread() -> Iterator[None]:
    """Run the body on one CPU thread of torch. Other threads of the process keep their number.

    A matrix product may be split differently among threads and then add up in another order: a
    float32 [7, 256] x [256, 4096] product changes in its last bits between one thread and two.
    """
    before = torch.get_num_threads()
    _set_of_this_thread(1)
    try:
        yield
    finally:
        _set_of_this_thread(before)


def _set_of_this_thread(count: int) -> None:
    """`torch.set_num_threads` also decides for every thread that first asks later: undo that."""
    with _lock:
        default = _in_new_thread(torch.get_num_threads)
        torch.set_num_threads(count)
        _in_new_thread(lambda: torch.set_num_threads(default))


def _in_new_thread(function: Callable):
    """What `function` returns in a thread of its own, which has torch's default settings."""
    results = []
    thread = Thread(target=lambda: results.append(function()))
    thread.start()
    thread.join()
    return results[0]
