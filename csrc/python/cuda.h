// Arrays on CUDA: what the ops make there are CuPy's arrays, launches go to the first array's
// device and stream, and nothing waits for either.
#pragma once

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <vector>

#include "any_array.h"

namespace edlm::ring {

inline py::module_ cupy() {
  try {
    return py::module_::import("cupy");
  } catch (py::error_already_set& error) {
    if (!error.matches(PyExc_ImportError)) throw;
    py::raise_from(error, PyExc_ImportError,
                   "ops on CUDA arrays return CuPy arrays, and CuPy cannot be imported");
    throw py::error_already_set();
  }
}

// While it lives, CuPy allocates and CUDA launches on the device and stream of `like`.
class CudaScope {
 public:
  explicit CudaScope(const AnyArray& like) {
    const py::object cuda = cupy().attr("cuda");
    const py::object device = cuda.attr("Device")(like.device);
    const py::object stream = cuda.attr("ExternalStream")(like.stream);
    stack_ = py::module_::import("contextlib").attr("ExitStack")();
    stack_.attr("enter_context")(device);
    stack_.attr("enter_context")(stream);
  }
  ~CudaScope() {
    try {
      stack_.attr("close")();
    } catch (py::error_already_set& error) {
      error.discard_as_unraisable("leaving the device and stream of an array");
    }
  }
  CudaScope(const CudaScope&) = delete;
  CudaScope& operator=(const CudaScope&) = delete;

 private:
  py::object stack_;
};

inline AnyArray empty_on_cuda(const AnyArray& like, const std::vector<int64_t>& sizes, Type type) {
  const CudaScope scope(like);
  const py::object made = cupy().attr("empty")(py::tuple(py::cast(sizes)), name(type));
  return {.owner = made,
          .data = reinterpret_cast<const void*>(made.attr("data").attr("ptr").cast<uintptr_t>()),
          .type = type,
          .dtype = name(type),
          .itemsize = size_of(type),
          .shape = sizes,
          .strides = {},
          .device = like.device,
          .stream = like.stream};
}

}  // namespace edlm::ring
