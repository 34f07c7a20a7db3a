// Arrays of any library as a backend of ring/ops.h: on the host rows are split over threads, on
// CUDA the ops are launched on the first array's device and stream.
#pragma once

#include <algorithm>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "../ring/ops.h"
#include "../ring/steps.h"
#include "any_array.h"
#include "cuda.h"

namespace edlm::ring {

// The threads are its own: there is no framework here whose threads to use.
struct Arrays {
  using Array = AnyArray;
  static constexpr const char* kLogitTypes = "float32, bfloat16 (or its bits as uint16) or float16";

  int64_t threads = 1;

  [[noreturn]] static void fail(const std::string& message) { throw py::value_error(message); }

  static Type type(const AnyArray& array) { return array.type; }
  static int64_t dim(const AnyArray& array) { return int64_t(array.shape.size()); }
  static int64_t size(const AnyArray& array, int64_t d) { return array.shape[d]; }
  static int64_t stride(const AnyArray& array, int64_t d) {
    require<Arrays>(array.strides[d] % array.itemsize == 0, "strides must be whole elements, got ",
                    array.strides[d], " bytes");
    return array.strides[d] / array.itemsize;
  }
  static std::string describe(const AnyArray& array) {
    return array.dtype + " " + shape(array.shape);
  }
  static bool on_host(const AnyArray& array) { return array.device == kOnHost; }
  static bool same_device(const AnyArray& a, const AnyArray& b) { return a.device == b.device; }
  static const void* data(const AnyArray& array) { return array.data; }
  static py::array numpy(const AnyArray& array) {
    return py::array(py::dtype(name(array.type)), array.shape, array.strides, array.data,
                     array.owner);
  }
  static AnyArray contiguous(const AnyArray& array) {
    if (array.compact()) return array;
    require<Arrays>(on_host(array), "arrays on CUDA must be contiguous (but for rows of logits), ",
                    "got strides of ", shape(array.strides), " bytes for ", describe(array));
    const py::array copy = py::array::ensure(numpy(array), py::array::c_style);
    if (!copy) throw py::error_already_set();
    return of_numpy(copy);
  }
  // NumPy's own MemoryError says how much was wanted.
  static AnyArray empty(const char*, const char*, const AnyArray& like,
                        const std::vector<int64_t>& sizes, Type type) {
    if (!on_host(like)) return empty_on_cuda(like, sizes, type);
    return of_numpy(py::array(py::dtype(name(type)), sizes));
  }

  void run(const StreamKeysArgs& args, const AnyArray& like) const {
    if (!on_host(like)) return launch(args, like);
    split(cpu::stream_keys, args, args.count, {"seeds"});
  }
  void run(const SampleCandidatesArgs& args, const AnyArray& like) const {
    if (!on_host(like)) return launch(args, like);
    split(cpu::sample_candidates, args, args.rows, {"logits"});
  }
  void run(const SampleWeightsArgs& args, const AnyArray& like) const {
    if (!on_host(like)) return launch(args, like);
    split(cpu::sample_weights, args, args.rows, {"weights"});
  }
  void run(const TokenLogProbsArgs& args, const AnyArray& like) const {
    if (!on_host(like)) return launch(args, like);
    split(cpu::token_log_probs, args, args.rows, {"logits", "targets"});
  }
  void run(const ResampleArgs& args, const AnyArray& like) const {
    if (!on_host(like)) return launch(args, like);
    split(cpu::resample, args, args.batch, {"log_weights"});
  }
  void run(const PlaceCandidatesArgs& args, const AnyArray& like) const {
    if (!on_host(like)) return launch(args, like);
    split(cpu::place_candidates, args, args.sequences, {"tokens"});
  }
  void run(const RevealChosenArgs& args, const AnyArray& like) const {
    if (!on_host(like)) return launch(args, like);
    split(cpu::reveal_chosen, args, args.sequences, {"log_weights"});
  }
  void run(const SumLogProbsArgs& args, const AnyArray& like) const {
    if (!on_host(like)) return launch(args, like);
    split(cpu::sum_log_probs, args, args.sequences, {"log_probs"});
  }
  void run(const ResidualDrawArgs& args, const AnyArray& like) const {
    if (!on_host(like)) return launch(args, like);
    split(cpu::residual_draw, args, args.p.rows, {"logits_p", "logits_q", "draft"});
  }
  void run(const RevealStepsArgs& args, const AnyArray& like) const {
    if (!on_host(like)) return launch(args, like);
    split(cpu::reveal_steps, args, args.batch, {"keys"});
  }

 private:
  template <class Args>
  void split(Status (*op)(const Args&, int64_t, int64_t), const Args& args, int64_t rows,
             std::initializer_list<const char*> what) const {
    require<Arrays>(threads >= 1, "threads must be at least 1, got ", threads);
    const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(threads, rows));
    std::vector<Status> status(parts);
    const auto part = [&](int64_t p) {
      status[p] = op(args, rows * p / parts, rows * (p + 1) / parts);
    };
    {
      const py::gil_scoped_release release;
      std::vector<std::jthread> workers;
      for (int64_t p = 1; p < parts; ++p) workers.emplace_back(part, p);
      part(0);
    }
    for (const Status& s : status) check<Arrays>(s, what);
  }

#ifdef EDLM_WITH_CUDA
  static void launch(const StreamKeysArgs& args, const AnyArray& like) {
    on_cuda(like, [&](void* stream) { return cuda::stream_keys(args, stream); });
  }
  static void launch(const SampleCandidatesArgs& args, const AnyArray& like) {
    // Freed on return, which is safe: CuPy hands it out again in stream order.
    const AnyArray memory =
        empty_on_cuda(like, {cuda::sample_candidates_workspace(args)}, Type::kByte);
    on_cuda(like, [&](void* stream) {
      return cuda::sample_candidates(args, out<void, Arrays>(memory), stream);
    });
  }
  static void launch(const SampleWeightsArgs& args, const AnyArray& like) {
    const AnyArray memory =
        empty_on_cuda(like, {cuda::sample_weights_workspace(args)}, Type::kByte);
    on_cuda(like, [&](void* stream) {
      return cuda::sample_weights(args, out<void, Arrays>(memory), stream);
    });
  }
  static void launch(const TokenLogProbsArgs& args, const AnyArray& like) {
    const AnyArray memory =
        empty_on_cuda(like, {cuda::token_log_probs_workspace(args)}, Type::kByte);
    on_cuda(like, [&](void* stream) {
      return cuda::token_log_probs(args, out<void, Arrays>(memory), stream);
    });
  }
  static void launch(const ResampleArgs& args, const AnyArray& like) {
    on_cuda(like, [&](void* stream) { return cuda::resample(args, stream); });
  }
  static void launch(const PlaceCandidatesArgs& args, const AnyArray& like) {
    on_cuda(like, [&](void* stream) { return cuda::place_candidates(args, stream); });
  }
  static void launch(const RevealChosenArgs& args, const AnyArray& like) {
    on_cuda(like, [&](void* stream) { return cuda::reveal_chosen(args, stream); });
  }
  static void launch(const SumLogProbsArgs& args, const AnyArray& like) {
    on_cuda(like, [&](void* stream) { return cuda::sum_log_probs(args, stream); });
  }
  static void launch(const ResidualDrawArgs& args, const AnyArray& like) {
    const AnyArray memory = empty_on_cuda(like, {cuda::residual_draw_workspace(args)}, Type::kByte);
    on_cuda(like, [&](void* stream) {
      return cuda::residual_draw(args, out<void, Arrays>(memory), stream);
    });
  }
  static void launch(const RevealStepsArgs& args, const AnyArray& like) {
    on_cuda(like, [&](void* stream) { return cuda::reveal_steps(args, stream); });
  }

  template <class Op>
  static void on_cuda(const AnyArray& like, const Op& op) {
    const CudaScope scope(like);
    Status status = {};
    {
      const py::gil_scoped_release release;
      status = op(reinterpret_cast<void*>(like.stream));
    }
    // A bad row does not raise here, so what went wrong is no argument's fault.
    if (!status) throw std::runtime_error("CUDA error " + std::to_string(status.row));
  }
#else
  template <class Args>
  [[noreturn]] static void launch(const Args&, const AnyArray& like) {
    throw std::runtime_error("the arrays lie on CUDA device " + std::to_string(like.device) +
                             ", and this build of edlm_engine has no CUDA kernels: build it with "
                             "EDLM_CUDA=ON");
  }
#endif
};

}  // namespace edlm::ring
