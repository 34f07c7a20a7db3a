"""How many CPU threads the models run on."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def one_thread() -> Iterator[None]:
    """Run the body on one CPU thread of torch.

    A matrix product may be split differently among threads and then add up in another order: a
    float32 [7, 256] x [256, 4096] product changes in its last bits between one thread and two.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
