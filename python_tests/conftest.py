import pytest
import torch

from edlm_engine.execution.threads import one_thread

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.gpu)]


@pytest.fixture(params=DEVICES if torch.cuda.is_available() else DEVICES[:1])
def device(request) -> str:
    """Every device of this machine: a test that takes it runs once on each."""
    return request.param


@pytest.fixture(scope="module")
def single_thread():
    """For tests of many tiny tensors: on a busy machine a second thread is only waited for."""
    with one_thread():
        yield
