"""Arrays that say they lie on CUDA, and a CuPy of them: host memory, never to be launched upon."""

import ctypes
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import numpy as np

CUDA = 2


class StandIn:
    """``array`` as if on device ``device`` of DLPack's kind ``kind`` and on stream ``stream``."""

    def __init__(self, array, device=1, kind=CUDA, stream=0x1230):
        self.array, self.place, self.stream = np.asarray(array), (kind, device), stream
        self.data = SimpleNamespace(ptr=self.array.ctypes.data)
        self.shape = self.array.shape
        self.device = nullcontext()
        self.asked = []  # the streams that it was exported to

    def __dlpack_device__(self):
        return self.place

    def __dlpack__(self, *, stream=None, max_version=None):
        self.asked.append(stream)
        capsule = self.array.__dlpack__()
        pointer = ctypes.pythonapi.PyCapsule_GetPointer
        pointer.restype, pointer.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]
        # DLTensor begins with its data and its device.
        (ctypes.c_int32 * 2).from_address(pointer(capsule, b"dltensor") + 8)[:] = self.place
        return capsule

    @property
    def __cuda_array_interface__(self):
        return {
            "shape": self.array.shape,
            "typestr": self.array.dtype.str,
            "data": (self.data.ptr, False),
            "version": 3,
            "stream": self.stream,
        }

    def reshape(self, *shape):
        return StandIn(self.array.reshape(*shape), self.place[1], stream=self.stream)


class Cupy:
    """What the ops ask of CuPy; ``log`` has what was made: (device, stream, dtype, shape)."""

    def __init__(self):
        self.log, self.places = [], {}
        self.cuda = SimpleNamespace(
            Device=lambda device: self._current("device", device),
            ExternalStream=lambda stream: self._current("stream", stream),
        )

    @contextmanager
    def _current(self, what, value):
        before = self.places.get(what)
        self.places[what] = value
        yield
        self.places[what] = before

    def empty(self, shape, dtype):
        device, stream = self.places["device"], self.places["stream"]
        self.log.append((device, stream, dtype, tuple(shape)))
        return StandIn(np.empty(shape, dtype), device, stream=stream)

    def from_dlpack(self, array):
        return array

    def full(self, shape, value, dtype):
        return StandIn(np.full(shape, value, dtype))

    def broadcast_arrays(self, *arrays):
        return [StandIn(x) for x in np.broadcast_arrays(*(x.array for x in arrays))]

    def stack(self, arrays, axis):
        return StandIn(np.stack([x.array for x in arrays], axis))
