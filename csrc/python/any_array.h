// An array of any library, as the ops see it: NumPy's, or one that speaks DLPack. Never copied.
#pragma once

#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <cstdint>
#include <string>
#include <vector>

#include "../ring/ops.h"
#include "dlpack.h"

namespace edlm::ring {

namespace py = pybind11;

inline constexpr int kOnHost = -1;

struct AnyArray {
  py::object owner;  // keeps the memory; for an array that an op made, what the caller gets
  const void* data = nullptr;
  Type type = Type::kOther;
  std::string dtype;  // in words
  int64_t itemsize = 1;
  std::vector<int64_t> shape, strides;  // strides in bytes
  int device = kOnHost;                 // or the number of a CUDA device
  intptr_t stream = 0;                  // a cudaStream_t, on which the array is ready
  bool read_only = false;

  bool compact() const {
    int64_t bytes = itemsize;
    bool dense = true;
    for (size_t d = shape.size(); d-- > 0;) {
      if (shape[d] == 0) return true;
      dense = dense && (shape[d] == 1 || strides[d] == bytes);
      bytes *= shape[d];
    }
    return dense;
  }
};

inline AnyArray of_numpy(const py::array& array) {
  const char kind = array.dtype().kind(), order = array.dtype().byteorder();
  const int64_t bytes = array.itemsize();
  const std::string dtype = py::str(array.dtype());
  const bool foreign = order != '=' && order != '|';
  const Type type = foreign                          ? Type::kOther
                    : kind == 'f' && bytes == 4      ? Type::kFloat32
                    : kind == 'f' && bytes == 2      ? Type::kFloat16
                    : kind == 'f' && bytes == 8      ? Type::kFloat64
                    : kind == 'i' && bytes == 8      ? Type::kInt64
                    : kind == 'u' && bytes == 2      ? Type::kBFloat16
                    : dtype == name(Type::kBFloat16) ? Type::kBFloat16  // that of ml_dtypes
                                                     : Type::kOther;
  return {.owner = array,
          .data = array.data(),
          .type = type,
          .dtype = dtype + (foreign ? " (not this machine's byte order)" : ""),
          .itemsize = bytes,
          .shape = {array.shape(), array.shape() + array.ndim()},
          .strides = {array.strides(), array.strides() + array.ndim()},
          .read_only = !array.writeable()};
}

inline Type type_of(dlpack::DataType dtype) {
  const auto is = [&](dlpack::Code code, int bits) {
    return dtype.lanes == 1 && dtype.code == code && dtype.bits == bits;
  };
  return is(dlpack::kFloat, 32)    ? Type::kFloat32
         : is(dlpack::kFloat, 16)  ? Type::kFloat16
         : is(dlpack::kFloat, 64)  ? Type::kFloat64
         : is(dlpack::kInt, 64)    ? Type::kInt64
         : is(dlpack::kBfloat, 16) ? Type::kBFloat16
         : is(dlpack::kUInt, 16)   ? Type::kBFloat16  // its bits
                                   : Type::kOther;
}

inline std::string in_words(dlpack::DataType dtype) {
  const char* const names[] = {"int", "uint", "float", nullptr, "bfloat", "complex", nullptr};
  if (dtype.code == dlpack::kBool) return "bool";
  if (dtype.code > dlpack::kBool || !names[dtype.code] || dtype.lanes != 1) return "another dtype";
  return names[dtype.code] + std::to_string(dtype.bits);
}

// Takes the capsule over: what it holds is freed with the owner.
template <class Managed>
py::object taken(const py::object& capsule, Managed* managed, const char* used_name) {
  PyCapsule_SetName(capsule.ptr(), used_name);
  return py::capsule(managed, [](void* pointer) {
    auto* const held = static_cast<Managed*>(pointer);
    if (held->deleter) held->deleter(held);
  });
}

// `object.__dlpack__()`, also of libraries that know no versions yet. A stream is told on CUDA
// only.
inline py::object dlpack_capsule(const py::object& object, py::dict arguments) {
  const py::object call = object.attr("__dlpack__");
  arguments["max_version"] = py::make_tuple(1, 0);
  try {
    return call(**arguments);
  } catch (const py::error_already_set& error) {
    if (!error.matches(PyExc_TypeError)) throw;
    arguments.attr("pop")("max_version");
    return call(**arguments);
  }
}

inline AnyArray of_dlpack(const py::object& object, int device, intptr_t stream) {
  py::dict arguments;
  if (device != kOnHost) arguments["stream"] = stream;
  const py::object capsule = dlpack_capsule(object, arguments);
  const dlpack::Tensor* tensor = nullptr;
  AnyArray array;
  if (PyCapsule_IsValid(capsule.ptr(), "dltensor_versioned")) {
    auto* const managed = static_cast<dlpack::ManagedVersioned*>(
        PyCapsule_GetPointer(capsule.ptr(), "dltensor_versioned"));
    if (managed->version.major != 1) {
      throw py::buffer_error("version " + std::to_string(managed->version.major) +
                             " is not known, 1 is");
    }
    array.owner = taken(capsule, managed, "used_dltensor_versioned");
    array.read_only = managed->flags & dlpack::kReadOnly;
    tensor = &managed->tensor;
  } else if (PyCapsule_IsValid(capsule.ptr(), "dltensor")) {
    auto* const managed =
        static_cast<dlpack::Managed*>(PyCapsule_GetPointer(capsule.ptr(), "dltensor"));
    array.owner = taken(capsule, managed, "used_dltensor");
    tensor = &managed->tensor;
  } else {
    throw py::buffer_error("__dlpack__ gave no DLPack capsule");
  }
  array.data = static_cast<const char*>(tensor->data) + tensor->byte_offset;
  array.type = type_of(tensor->dtype);
  array.dtype = in_words(tensor->dtype);
  array.itemsize = (tensor->dtype.bits * tensor->dtype.lanes + 7) / 8;
  array.shape.assign(tensor->shape, tensor->shape + tensor->ndim);
  array.strides.resize(tensor->ndim);
  int64_t elements = 1;
  for (int32_t d = tensor->ndim; d-- > 0;) {
    array.strides[d] = (tensor->strides ? tensor->strides[d] : elements) * array.itemsize;
    elements *= tensor->shape[d];
  }
  array.device = device;
  array.stream = stream;
  return array;
}

// DLPack names no stream; `__cuda_array_interface__` does from version 3 on. Without one, the
// legacy default stream.
inline intptr_t stream_of(const py::object& object) {
  if (!py::hasattr(object, "__cuda_array_interface__")) return 1;
  const py::object stream =
      object.attr("__cuda_array_interface__").attr("get")("stream", py::none());
  return stream.is_none() ? 1 : stream.cast<intptr_t>();
}

// The argument `what`, an array of any library. On CUDA it is made ready on the stream of `first`,
// the call's first array, or on its own if it is the first.
inline AnyArray array_arg(const char* what, const py::object& object,
                          const AnyArray* first = nullptr) {
  const std::string given = what;
  AnyArray array;
  if (py::isinstance<py::array>(object)) {
    array = of_numpy(py::reinterpret_borrow<py::array>(object));
  } else if (py::hasattr(object, "__dlpack__") && py::hasattr(object, "__dlpack_device__")) {
    try {
      const py::tuple place = object.attr("__dlpack_device__")();
      const int kind = place[0].cast<int>(), id = place[1].cast<int>();
      if (kind == dlpack::kHost || kind == dlpack::kCudaHost) {
        array = of_dlpack(object, kOnHost, 0);
      } else if (kind == dlpack::kCuda || kind == dlpack::kCudaManaged) {
        const bool follows = first && first->device != kOnHost;
        array = of_dlpack(object, id, follows ? first->stream : stream_of(object));
      } else {
        throw py::value_error("it lies on DLPack device kind " + std::to_string(kind) +
                              ", wanted is 1 (host) or 2 (CUDA)");
      }
    } catch (py::error_already_set& error) {
      if (!error.matches(PyExc_Exception)) throw;  // an interrupt
      const std::string why = py::str(error.value());
      py::raise_from(error, PyExc_ValueError,
                     (given + " could not be read through DLPack: " + why).c_str());
      throw py::error_already_set();
    } catch (const py::builtin_exception& error) {
      throw py::value_error(given + " could not be read through DLPack: " + error.what());
    }
  } else if (py::hasattr(object, "__cuda_array_interface__")) {
    throw py::type_error(given +
                         " has __cuda_array_interface__ without __dlpack__, which tells its "
                         "device: cupy.asarray of it has both");
  } else {
    throw py::type_error(given + " must be an array (NumPy's, or one with __dlpack__), got " +
                         Py_TYPE(object.ptr())->tp_name);
  }
  if (array.type != Type::kOther && uintptr_t(array.data) % size_of(array.type) != 0) {
    throw py::value_error(given + " must lie at whole multiples of its elements' size");
  }
  return array;
}

// An argument that the op writes into.
inline AnyArray written_arg(const char* what, const py::object& object, const AnyArray& first) {
  const AnyArray array = array_arg(what, object, &first);
  if (array.read_only)
    throw py::value_error(std::string(what) + " is written, got a read-only array");
  return array;
}

}  // namespace edlm::ring
