// Tensors for the ops of ring/ops.h, through torch's stable ABI.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstdint>
#include <iomanip>
#include <sstream>
#include <stdexcept>
#include <string>
#include <vector>

#include "../ring/ops.h"
#include "../ring/steps.h"

namespace edlm::ring {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;

struct Tensors {
  using Array = Tensor;
  static constexpr const char* kLogitTypes = "float32, bfloat16 or float16";

  [[noreturn]] static void fail(const std::string& message) { throw std::runtime_error(message); }

  static Type type(const Tensor& tensor) {
    for (const Type type : {Type::kFloat32, Type::kBFloat16, Type::kFloat16, Type::kFloat64,
                            Type::kInt64, Type::kByte, Type::kBool}) {
      if (tensor.scalar_type() == scalar_type(type)) return type;
    }
    return Type::kOther;
  }
  static int64_t dim(const Tensor& tensor) { return tensor.dim(); }
  static int64_t size(const Tensor& tensor, int64_t d) { return tensor.size(d); }
  static int64_t stride(const Tensor& tensor, int64_t d) { return tensor.stride(d); }
  static std::string describe(const Tensor& tensor) {
    const bool int32 = tensor.scalar_type() == ScalarType::Int;
    return std::string(int32 ? "int32" : name(type(tensor))) + " " + shape(sizes(tensor));
  }
  static bool on_host(const Tensor& tensor) { return !tensor.is_cuda(); }
  static bool same_device(const Tensor& a, const Tensor& b) {
    return a.is_cuda() == b.is_cuda() && a.get_device_index() == b.get_device_index();
  }
  static const void* data(const Tensor& tensor) { return tensor.const_data_ptr(); }

  static Tensor contiguous(const Tensor& tensor) {
    return with_room("a contiguous copy of ", sizes(tensor), type(tensor),
                     [&] { return torch::stable::contiguous(tensor); });
  }
  static Tensor empty(const char* op, const char* what, const Tensor& like,
                      const std::vector<int64_t>& sizes, Type type) {
    return with_room(std::string(op) + ": " + what + " ", sizes, type,
                     [&] { return torch::stable::new_empty(like, sizes, scalar_type(type)); });
  }

 private:
  static ScalarType scalar_type(Type type) {
    const ScalarType types[] = {ScalarType::Float,  ScalarType::BFloat16, ScalarType::Half,
                                ScalarType::Double, ScalarType::Long,     ScalarType::Byte,
                                ScalarType::Bool};
    return types[int(type)];
  }
  static std::vector<int64_t> sizes(const Tensor& tensor) {
    std::vector<int64_t> sizes;
    for (int64_t d = 0; d < tensor.dim(); ++d) sizes.push_back(tensor.size(d));
    return sizes;
  }
  // The stable ABI of torch 2.10 says that a call failed, and not why.
  template <class Make>
  static Tensor with_room(const std::string& what, const std::vector<int64_t>& sizes, Type type,
                          const Make& make) {
    try {
      return make();
    } catch (const std::exception&) {
      double bytes = double(size_of(type));
      for (const int64_t size : sizes) bytes *= double(size);
      std::ostringstream message;
      message << what << name(type) << " " << shape(sizes)
              << " could not be allocated: " << std::fixed << std::setprecision(0) << bytes
              << " bytes";
      fail(message.str());
    }
  }
};

// An op of ring/ops.h as a function of tensors and numbers alone, as torch boxes it.
template <auto op>
struct OnTensors;
template <class R, class B, class... P, R (*op)(const B&, P...)>
struct OnTensors<op> {
  static R call(P... p) { return op(B{}, p...); }
};

// Inside STABLE_TORCH_LIBRARY_IMPL.
template <class B, class Library>
void register_ops(Library& m) {
  m.impl("stream_keys", TORCH_BOX(&OnTensors<&stream_keys<B>>::call));
  m.impl("sample_candidates", TORCH_BOX(&OnTensors<&sample_candidates<B>>::call));
  m.impl("sample_candidates_statistics",
         TORCH_BOX(&OnTensors<&sample_candidates_statistics<B>>::call));
  m.impl("sample_weights", TORCH_BOX(&OnTensors<&sample_weights<B>>::call));
  m.impl("token_log_probs", TORCH_BOX(&OnTensors<&token_log_probs<B>>::call));
  m.impl("resample", TORCH_BOX(&OnTensors<&resample<B>>::call));
  m.impl("place_candidates", TORCH_BOX(&OnTensors<&place_candidates<B>>::call));
  m.impl("reveal_chosen", TORCH_BOX(&OnTensors<&reveal_chosen<B>>::call));
  m.impl("sum_log_probs", TORCH_BOX(&OnTensors<&sum_log_probs<B>>::call));
  m.impl("residual_draw", TORCH_BOX(&OnTensors<&residual_draw<B>>::call));
  m.impl("reveal_steps", TORCH_BOX(&OnTensors<&reveal_steps<B>>::call));
}

}  // namespace edlm::ring
