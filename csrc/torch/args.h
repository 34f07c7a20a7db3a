// Tensors to argument structs: the only place where arguments are checked.
//
// A message names the argument, what was wanted and what came:
//   keys must be int64 with shape [7], got float32 [7]
#pragma once

#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cmath>
#include <cstdint>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "edlm/resample.h"
#include "edlm/reveal_steps.h"
#include "edlm/sample_candidates.h"
#include "edlm/stream_keys.h"
#include "edlm/token_log_probs.h"

namespace edlm::ring {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

template <class... Parts>
void require(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream message;
  (message << ... << parts);
  throw std::runtime_error(message.str());
}

inline const char* name(ScalarType type) {
  switch (type) {
    case ScalarType::Float:
      return "float32";
    case ScalarType::Double:
      return "float64";
    case ScalarType::BFloat16:
      return "bfloat16";
    case ScalarType::Half:
      return "float16";
    case ScalarType::Long:
      return "int64";
    case ScalarType::Int:
      return "int32";
    case ScalarType::Bool:
      return "bool";
    default:
      return "another dtype";
  }
}

inline std::string shape(const Tensor& tensor) {
  std::ostringstream text;
  text << "[";
  for (int64_t d = 0; d < tensor.dim(); ++d) text << (d ? ", " : "") << tensor.size(d);
  text << "]";
  return text.str();
}

inline std::string got(const Tensor& tensor) {
  return std::string(", got ") + name(tensor.scalar_type()) + " " + shape(tensor);
}

inline void require_device(const Tensor& tensor, const char* what, const Tensor& like,
                           const char* like_what) {
  require(
      tensor.is_cuda() == like.is_cuda() && tensor.get_device_index() == like.get_device_index(),
      what, " must be on the device of ", like_what);
}

// A contiguous tensor of `type` and shape `sizes`.
inline Tensor vector_like(const Tensor& tensor, const char* what, ScalarType type, int64_t size) {
  require(tensor.scalar_type() == type && tensor.dim() == 1 && tensor.size(0) == size, what,
          " must be ", name(type), " with shape [", size, "]", got(tensor));
  return torch::stable::contiguous(tensor);
}

struct Logits {
  const void* data;
  DType dtype;
  int64_t rows, vocab, row_stride;
};

inline Logits logits_arg(const Tensor& logits, int64_t forbidden_id, double temperature) {
  const ScalarType type = logits.scalar_type();
  require(type == ScalarType::Float || type == ScalarType::BFloat16 || type == ScalarType::Half,
          "logits must be float32, bfloat16 or float16", got(logits));
  require(logits.dim() == 2 && logits.size(1) >= 1,
          "logits must have shape [rows, vocab] with vocab >= 1", got(logits));
  require(logits.size(1) == 1 || logits.stride(1) == 1,
          "logits must be contiguous in its last dimension, got stride ", logits.stride(1));
  require(forbidden_id >= -1 && forbidden_id < logits.size(1), "forbidden_id must be -1 or in [0, ",
          logits.size(1), "), got ", forbidden_id);
  require(temperature > 0 && std::isfinite(temperature) &&
              std::isfinite(2.0f / static_cast<float>(temperature)),
          "temperature must be positive and finite, got ", temperature);
  const DType dtype = type == ScalarType::Float      ? DType::kFloat32
                      : type == ScalarType::BFloat16 ? DType::kBFloat16
                                                     : DType::kFloat16;
  return {logits.const_data_ptr(), dtype, logits.size(0), logits.size(1), logits.stride(0)};
}

inline Tensor empty(const Tensor& like, std::vector<int64_t> sizes, ScalarType type) {
  return torch::stable::new_empty(like, sizes, type);
}

// What a bad row is called in a message.
inline void check(Status status, const char* argument) {
  switch (status.code) {
    case Code::kOk:
      return;
    case Code::kNotANumber:
      require(false, argument, " row ", status.row, " holds NaN or +inf");
      return;
    case Code::kNothingLeft:
      require(false, argument, " row ", status.row, " allows nothing: every entry is -inf");
      return;
    case Code::kBadTarget:
      require(false, "targets row ", status.row, " is outside the vocabulary");
      return;
    case Code::kDevice:
      require(false, "CUDA error ", status.row);
      return;
  }
}

}  // namespace edlm::ring
