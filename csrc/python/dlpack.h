// The structs of DLPack 1.x (github.com/dmlc/dlpack), a stable ABI: what a capsule of `__dlpack__`
// points to.
#pragma once

#include <cstdint>

namespace edlm::dlpack {

enum DeviceKind : int32_t { kHost = 1, kCuda = 2, kCudaHost = 3, kCudaManaged = 13 };
enum Code : uint8_t { kInt = 0, kUInt = 1, kFloat = 2, kBfloat = 4, kComplex = 5, kBool = 6 };

struct Device {
  int32_t kind, id;
};

struct DataType {
  uint8_t code, bits;
  uint16_t lanes;
};

struct Tensor {
  void* data;
  Device device;
  int32_t ndim;
  DataType dtype;
  int64_t* shape;
  int64_t* strides;  // in elements; null if compact and row-major
  uint64_t byte_offset;
};

// Of a capsule named "dltensor".
struct Managed {
  Tensor tensor;
  void* context;
  void (*deleter)(Managed*);
};

struct Version {
  uint32_t major, minor;
};

// A bit of ManagedVersioned::flags.
inline constexpr uint64_t kReadOnly = 1;

// Of a capsule named "dltensor_versioned".
struct ManagedVersioned {
  Version version;  // read first: what follows depends on the major version
  void* context;
  void (*deleter)(ManagedVersioned*);
  uint64_t flags;
  Tensor tensor;
};

}  // namespace edlm::dlpack
