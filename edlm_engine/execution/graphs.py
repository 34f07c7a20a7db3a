"""CUDA graphs of the model calls in the sampling loop.

The backbones make nearly all of an iteration's kernel launches, and what they launch depends only
on the shape of their arguments: so every (model, method, shape) gets a graph of its own. Rows are
padded to few sizes (`padded_rows`). What is left of an iteration is a few dozen launches on a
number of positions that changes with every step; it stays eager, for nothing in the loop waits for
the device: the host runs ahead while the graphs keep the device busy.

A model is captured if it says that it may be, by an attribute `capturable` that is True:

- each row of its outputs depends on that row of its tensor arguments, on nothing else that changes
  (no dropout, no Python state: Python runs at the capture only), and it never waits for the device;
- its weights stay where they are during a generation (between two of them they may move).

All others run eagerly, and so do methods whose capture fails. The log says which and why, once.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import chain
from threading import RLock, local
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

_log = logging.getLogger(__name__)

# A graph costs host time to capture and a few megabytes of driver memory.
MAX_GRAPHS = 128

Outputs = Tensor | tuple[Tensor, ...]
# Runs a function twice, to warm up and to record it; what it returns runs the record again.
Capture = Callable[[Callable[[], None]], Callable[[], None]]

# A thread that inherits the context (`asyncio.to_thread`) does not hold the lock: `graphs` is there
# only in the thread that set it.
_in_use: ContextVar[local | None] = ContextVar("graphs", default=None)


def _used() -> ModelGraphs | None:
    return getattr(_in_use.get(), "graphs", None)


def call_model(model: object, name: str, *given) -> Any:
    """`model.name(*given)`, within `using(graphs)` by a graph where the model allows it.

    Tensors among `given` have the same number of rows, and so do the outputs. Those of a graph are
    overwritten by the next call.
    """
    graphs = _used()
    return getattr(model, name)(*given) if graphs is None else graphs.call(model, name, *given)


@contextmanager
def using(graphs: ModelGraphs | None) -> Iterator[None]:
    """Within the body, `call_model` in this thread uses `graphs`; other threads that do, wait."""
    if graphs is None:
        yield
        return
    with graphs.lock:
        graphs.forget_moved()
        here = local()
        here.graphs = graphs
        token = _in_use.set(here)
        try:
            yield
        finally:
            _in_use.reset(token)


def in_use() -> bool:
    """Whether the caller runs within `using(graphs)`: few different shapes are then best."""
    return _used() is not None


def padded_rows(rows: int) -> int:
    """The number of rows that a call on `rows` is padded to.

    Up to 16 it is exact; above, there are eight sizes to each doubling, so that less than one row
    in eight is padding.
    """
    size = 1 << max(0, (rows - 1).bit_length() - 4)
    return -(-rows // size) * size


class ModelGraphs:
    """The graphs of models on one device, kept as long as the model and this object live.

    A shape that comes for the first time runs eagerly, padded as its graph will be; the second time
    it is captured. Outputs lie in one buffer that all graphs share, so that the memory of a graph's
    activations can serve the others too.
    """

    def __init__(self, device: torch.device, capture: Capture):
        self.device = device
        self.lock = RLock()
        self._capture = capture
        self._models: WeakKeyDictionary[object, _Captured] = WeakKeyDictionary()
        self._buffer = torch.empty(0, dtype=torch.uint8, device=device)
        self._logged: set[str] = set()

    def __len__(self) -> int:
        """The number of graphs."""
        calls = chain.from_iterable(captured.calls.values() for captured in self._models.values())
        return sum(isinstance(call, _Graph) for call in calls)

    def forget_moved(self) -> None:
        """Drop the graphs of models whose weights are elsewhere now, as after `model.to(dtype)`."""
        for model, captured in list(self._models.items()):
            if captured.addresses != _addresses(model):
                del self._models[model]

    def call(self, model: object, name: str, *given) -> Outputs:
        """See `call_model`."""
        function = getattr(model, name)
        if refusal := self._refusal(model):
            self._say(logging.INFO, f"{type(model).__name__}.{name} runs eagerly: {refusal}")
            return function(*given)
        if model not in self._models:
            self._models[model] = _Captured(_addresses(model))
        captured = self._models[model]
        # A method that was replaced (compiled, wrapped) is another one; its id does not keep it.
        method = name, id(getattr(function, "__func__", function))
        if method in captured.failed:
            return function(*given)
        rows = next(len(x) for x in given if isinstance(x, Tensor))
        padded = padded_rows(rows)
        shapes = ((x.shape[1:], x.dtype) if isinstance(x, Tensor) else x for x in given)
        key = method, padded, *shapes
        call = captured.calls.get(key)
        if call is None or (isinstance(call, _Seen) and self._full()):
            outputs = function(*(_pad(x, padded) for x in given))
            captured.calls[key] = _Seen(_each(lambda x: x.to("meta"), outputs))
            return _each(lambda x: x[:rows], outputs)
        if isinstance(call, _Seen):
            try:
                call = self._record(function, given, padded, call)
            except RuntimeError as error:
                captured.failed.add(method)
                what = f"{type(model).__name__}.{name}"
                self._say(logging.WARNING, f"{what} runs eagerly: its capture failed: {error}")
                return function(*given)
            captured.calls[key] = call
        return call(given, rows)

    def _refusal(self, model: object) -> str:
        """Why the model is not captured, empty if it may be."""
        if getattr(model, "capturable", False) is not True:
            return "its attribute `capturable` is not True"
        if torch.is_autocast_enabled(self.device.type):
            return "autocast is on, whose copies of the weights a graph would not update"
        return ""

    def _full(self) -> bool:
        full = len(self) >= MAX_GRAPHS
        if full:
            self._say(logging.INFO, f"further shapes run eagerly: there are {MAX_GRAPHS} graphs")
        return full

    def _record(self, function: Callable, given: tuple, padded: int, seen: _Seen) -> _Graph:
        inputs = tuple(_pad(x, padded).clone() if isinstance(x, Tensor) else x for x in given)
        outputs = self._place(seen.outputs)

        def body() -> None:
            results = function(*inputs)
            for result, output in zip(_flat(results), _flat(outputs), strict=True):
                output.copy_(result)

        return _Graph(self._capture(body), inputs, outputs)

    def _place(self, outputs: Outputs) -> Outputs:
        """Room for tensors like `outputs` in the buffer, which grows if it must."""
        # 256 bytes is the alignment of torch's own allocations.
        ends = [0]
        for output in _flat(outputs):
            ends.append(ends[-1] + -(-output.nbytes // 256) * 256)
        if ends[-1] > len(self._buffer):
            self._buffer = self._buffer.new_empty(ends[-1])
        starts = iter(ends)

        def place(output: Tensor) -> Tensor:
            start = next(starts)
            room = self._buffer[start : start + output.nbytes]
            return room.view(output.dtype).view(output.shape)

        return _each(place, outputs)

    def _say(self, level: int, message: str) -> None:
        if message not in self._logged:
            self._logged.add(message)
            _log.log(level, "%s", message)


@dataclass
class _Captured:
    """What is known of a model: where its weights are, its calls by shape, its failed methods."""

    addresses: tuple[int, ...]
    calls: dict[tuple, _Seen | _Graph] = field(default_factory=dict)
    failed: set[tuple] = field(default_factory=set)


@dataclass(frozen=True)
class _Seen:
    outputs: Outputs  # on the meta device: shapes and dtypes


@dataclass(frozen=True)
class _Graph:
    replay: Callable[[], None]
    inputs: tuple
    outputs: Outputs

    def __call__(self, given: tuple, rows: int) -> Outputs:
        # Padding rows keep what they held: rows do not depend on each other.
        for static, x in zip(self.inputs, given, strict=True):
            if isinstance(x, Tensor):
                static[:rows].copy_(x)
        self.replay()
        return _each(lambda x: x[:rows], self.outputs)


def capture_on(device: torch.device) -> Capture | None:
    """How functions are captured on a device; None where they are not."""
    return CudaCapture(device) if device.type == "cuda" else None


class CudaCapture:
    """Captures CUDA graphs, all in one memory pool: they must not run at the same time.

    Raises RuntimeError if the function waits for the device or cannot be captured.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.stream = torch.cuda.Stream(device)
        self.pool = torch.cuda.graph_pool_handle()

    def __call__(self, function: Callable[[], None]) -> Callable[[], None]:
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        # A capture that fails leaves torch's allocator unable to free memory (before torch 2.12),
        # so what would make it fail is looked for in the warm-up.
        with torch.cuda.stream(self.stream), _refused_waits():
            function()
        graph = torch.cuda.CUDAGraph()
        # Entering waits for the device, the warm-up included. Other threads may go on meanwhile.
        with torch.cuda.graph(
            graph, pool=self.pool, stream=self.stream, capture_error_mode="thread_local"
        ):
            function()
        return graph.replay


@contextmanager
def _refused_waits() -> Iterator[None]:
    """RuntimeError after a body in which torch noticed a wait for the device."""
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True) as heard:
        warnings.simplefilter("always")
        # Not "error": the mode is the process's, and other threads may wait.
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode(before)
    for warning in heard:
        if "synchronizing CUDA operation" in str(warning.message):
            raise RuntimeError(f"{warning.message} ({warning.filename}:{warning.lineno})")


def _addresses(model: object) -> tuple[int, ...]:
    """Where the weights of a module are; nothing for other objects."""
    if not isinstance(model, torch.nn.Module):
        return ()
    return tuple(x.data_ptr() for x in chain(model.parameters(), model.buffers()))


def _pad(x: Any, rows: int) -> Any:
    """A tensor with rows of zeros up to `rows`; anything else as it is."""
    if not isinstance(x, Tensor) or len(x) == rows:
        return x
    return torch.cat([x, x.new_zeros(rows - len(x), *x.shape[1:])])


def _flat(outputs: Outputs) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else outputs


def _each(function: Callable[[Tensor], Tensor], outputs: Outputs) -> Outputs:
    return function(outputs) if isinstance(outputs, Tensor) else tuple(map(function, outputs))
