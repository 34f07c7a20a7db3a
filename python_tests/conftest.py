import pytest
import torch

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES if torch.cuda.is_available() else DEVICES[:1])
def device(request) -> str:
    """Every device of this machine: a test that takes it runs once on each."""
    return request.param


@pytest.fixture(scope="module")
def single_thread():
    """For tests of many tiny tensors: on a busy machine a second thread is only waited for."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)  # of threads that a test starts, too
    yield
    torch.set_num_threads(before)
