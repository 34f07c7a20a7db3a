"""The CUDA capture and the order of its streams, emulated: a stream tells what it waits for."""

import warnings
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from types import SimpleNamespace

import pytest
import torch

from edlm_engine.execution.capture import CudaCapture, capture_on
from edlm_engine.execution.graphs import ModelGraphs, using

DEVICE = torch.device("cuda", 1)
WAIT = "called a synchronizing CUDA operation"


class Stream:
    """Knows the work that is done when its next work begins."""

    def __init__(self, device=None):
        self.device, self.done = device, []

    def launch(self, work):
        self.done = [*self.done, work]

    def wait_event(self, event):
        self.done = [*self.done, *(work for work in event.done if work not in self.done)]

    wait_stream = wait_event


class Event:
    def __init__(self):
        self.done = []

    def record(self, stream):
        self.done = stream.done


class Cuda(SimpleNamespace):
    """`torch.cuda` with two devices, of which 0 is the current one, and no work but `launch`."""

    Stream, Event = Stream, Event

    def __init__(self):
        self.index, self.current = 0, {0: Stream(), 1: Stream()}
        self.mode, self.recorded = "before", []

    def current_stream(self, device=None):
        return self.current[self.index if device is None else device.index]

    def launch(self, work):
        self.current_stream().launch(work)

    @contextmanager
    def device(self, device):
        before, self.index = self.index, device.index
        yield
        self.index = before

    @contextmanager
    def stream(self, stream):
        before = self.index, self.current
        self.index, self.current = stream.device.index, {**before[1], stream.device.index: stream}
        try:
            yield
        finally:
            self.index, self.current = before

    def graph_pool_handle(self):
        return "pool"

    def get_sync_debug_mode(self):
        return self.mode

    def set_sync_debug_mode(self, mode):
        self.mode = mode

    def CUDAGraph(self):
        return SimpleNamespace(replay=lambda: None)

    @contextmanager
    def graph(self, graph, pool, stream, capture_error_mode):
        # As torch does, it waits for the current device only.
        self.recorded.append((self.index, stream, pool, capture_error_mode, self.mode))
        with self.stream(stream):
            yield


@pytest.fixture
def cuda(monkeypatch):
    cuda = Cuda()
    monkeypatch.setattr(torch, "cuda", cuda)
    return cuda


def test_a_capture_warms_up_on_its_stream_then_records(cuda):
    capture, calls = capture_on(DEVICE), []

    def function():
        calls.append((cuda.current_stream(), cuda.mode))

    replay = capture(function)
    assert calls == [(capture.stream, "warn"), (capture.stream, "before")]
    assert cuda.recorded == [(1, capture.stream, "pool", "thread_local", "before")]
    assert callable(replay) and capture_on(torch.device("cpu")) is None


def test_the_warm_up_lies_between_what_comes_before_and_after(cuda):
    """On a device that is not the current one, too."""
    capture, outside = CudaCapture(DEVICE), cuda.current[1]
    outside.launch("before")

    def function():
        if not cuda.recorded:
            assert cuda.current_stream() is capture.stream and outside.done == ["before"]
            assert "before" in capture.stream.done
            cuda.launch("warm-up")

    capture(function)
    assert outside.done == ["before", "warm-up"] and cuda.index == 0
    assert cuda.recorded[0][0] == DEVICE.index


def test_what_a_failed_warm_up_launched_comes_first_too(cuda):
    capture, outside = CudaCapture(DEVICE), cuda.current[1]

    def function():
        cuda.launch("warm-up")
        warnings.warn(WAIT, stacklevel=1)

    with pytest.raises(RuntimeError, match=WAIT):
        capture(function)
    assert outside.done == ["warm-up"] and cuda.recorded == [] and cuda.mode == "before"


def test_waits_of_other_threads_are_theirs(cuda, recwarn):
    def function():
        with ThreadPoolExecutor(1) as pool:
            pool.submit(warnings.warn, WAIT).result()
        warnings.warn("of something else", stacklevel=1)

    CudaCapture(DEVICE)(function)
    assert len(cuda.recorded) == 1 and "of something else" in str(recwarn.pop().message)


# The turns of those who use one set of graphs


@pytest.mark.parametrize("error", [KeyError, KeyboardInterrupt, None])
def test_replays_wait_for_those_of_a_turn_that_broke_off(cuda, error):
    graphs = ModelGraphs(torch.device("cpu"), CudaCapture(DEVICE))
    one, other = Stream(DEVICE), Stream(DEVICE)
    for stream, work in ((one, "first"), (other, "second"), (one, "third")):
        with suppress(KeyError, KeyboardInterrupt), cuda.stream(stream), using(graphs):
            before = stream.done
            cuda.launch(work)
            if error:
                raise error
    assert before == ["first", "second"]


def test_a_turn_within_a_turn_on_another_stream(cuda):
    """As of a callback that generates with the same engine."""
    graphs = ModelGraphs(torch.device("cpu"), CudaCapture(DEVICE))
    one, other = Stream(DEVICE), Stream(DEVICE)
    with cuda.stream(one), using(graphs):
        cuda.launch("first")
        with cuda.stream(other), using(graphs):
            assert other.done == ["first"]
            cuda.launch("second")
        assert one.done == ["first", "second"]
        cuda.launch("third")
    with cuda.stream(other), using(graphs):
        assert other.done == ["first", "second", "third"]
