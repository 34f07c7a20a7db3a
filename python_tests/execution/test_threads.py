"""`one_thread` is of the calling thread alone, although torch's setting is not."""

from concurrent.futures import ThreadPoolExecutor
from threading import Event

import pytest
import torch

from edlm_engine.execution.threads import one_thread

DEFAULT = 3


@pytest.fixture(autouse=True)
def default():
    before = torch.get_num_threads()
    torch.set_num_threads(DEFAULT)
    yield
    torch.set_num_threads(before)


def in_new_thread(function=torch.get_num_threads):
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(function).result(60)


def test_within_and_after():
    with one_thread():
        assert torch.get_num_threads() == 1
        assert in_new_thread() == DEFAULT
    assert torch.get_num_threads() == in_new_thread() == DEFAULT


def test_after_an_error():
    with pytest.raises(KeyError), one_thread():
        raise KeyError
    assert torch.get_num_threads() == in_new_thread() == DEFAULT


def test_a_threads_own_number_comes_back():
    def own():
        torch.set_num_threads(2)
        with one_thread():
            pass
        return torch.get_num_threads()

    assert in_new_thread(own) == 2


def test_overlapping_threads():
    """The second begins within the first and ends after it."""
    begun, ended = Event(), Event()

    def second():
        with one_thread():
            begun.set()
            assert ended.wait(60) and torch.get_num_threads() == 1
        return torch.get_num_threads()

    with ThreadPoolExecutor(1) as pool:
        with one_thread():
            run = pool.submit(second)
            assert begun.wait(60)
        ended.set()
        assert run.result(60) == DEFAULT
    assert torch.get_num_threads() == in_new_thread() == DEFAULT
