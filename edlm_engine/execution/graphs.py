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
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from itertools import chain
from threading import RLock, local
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from edlm_engine.execution.capture import Capture

_log = logging.getLogger(__name__)

# A graph costs host time to capture and a few megabytes of driver memory.
MAX_GRAPHS = 128

Outputs = Tensor | tuple[Tensor, ...]

# The process records one graph at a time: a capture looks for waits by a setting of the process.
_recording = RLock()

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
    with graphs.lock, graphs.turn():
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

    def turn(self) -> AbstractContextManager[None]:
        """See `Capture.turn`."""
        return self._capture.turn()

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

        with _recording:
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

    addresses: tuple[tuple, ...]
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


def _addresses(model: object) -> tuple[tuple, ...]:
    """Where the weights of a module are, and as what; nothing for other objects."""
    if not isinstance(model, torch.nn.Module):
        return ()
    weights = chain(model.parameters(), model.buffers())
    return tuple((x.data_ptr(), x.dtype, x.shape, x.stride()) for x in weights)


def _pad(x: Any, rows: int) -> Any:
    """A tensor with rows of zeros up to `rows`; anything else as it is."""
    if not isinstance(x, Tensor) or len(x) == rows:
        return x
    return torch.cat([x, x.new_zeros(rows - len(x), *x.shape[1:])])


def _flat(outputs: Outputs) -> tuple[Tensor, ...]:
    return (outputs,) if isinstance(outputs, Tensor) else outputs


def _each(function: Callable[[Tensor], Tensor], outputs: Outputs) -> Outputs:
    return function(outputs) if isinstance(outputs, Tensor) else tuple(map(function, outputs))
