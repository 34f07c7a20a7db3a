// edlm_engine._C: facts of the build, and the ops on arrays of any library for callers without
// torch (edlm_engine.arrays).
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <initializer_list>
#include <stdexcept>
#include <string>
#include <thread>
#include <tuple>
#include <vector>

#include "../cpu/row_pass.h"
#include "../ring/ops.h"
#include "any_array.h"
#include "cuda.h"

namespace edlm::ring {
namespace {

// Arrays for the ops of ring/ops.h. On the host the rows are split over threads of its own: there
// is no framework here whose threads to use.
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
    Status status;
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

// An int64 array as one of NumPy or CuPy, to be broadcast with others.
py::object words(const std::string& what, const py::object& object) {
  const AnyArray array = array_arg(what.c_str(), object);
  require<Arrays>(array.type == Type::kInt64, what, " must be int64 or an int, got ",
                  Arrays::describe(array));
  return Arrays::on_host(array) ? Arrays::numpy(array) : cupy().attr("from_dlpack")(object);
}

// What an op made, as the caller gets it.
py::object given(const AnyArray& made) { return made.owner; }
template <class... Made>
py::tuple given(const std::tuple<Made...>& made) {
  return std::apply([](const auto&... array) { return py::make_tuple(array.owner...); }, made);
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = __VERSION__;
  info["cpu_isa"] = cpu::row_pass().name;
#ifdef EDLM_WITH_CUDA
  info["cuda"] = true;
#else
  info["cuda"] = false;
#endif
  return info;
}

}  // namespace
}  // namespace edlm::ring

PYBIND11_MODULE(_C, m) {
  using namespace pybind11::literals;
  using namespace edlm::ring;
  using py::object;
  m.doc() =
      "Facts of the build, and the ops on arrays of any library (edlm_engine.arrays has their "
      "documentation).";
  m.def("build_info", &build_info);
  m.def("words", &words, "what"_a, "array"_a);
  m.def(
      "stream_keys",
      [](const object& seeds, const object& coordinates) {
        const AnyArray first = array_arg("seeds", seeds);
        return given(stream_keys(Arrays{}, first, array_arg("coordinates", coordinates, &first)));
      },
      "seeds"_a, "coordinates"_a);
  m.def(
      "sample_candidates",
      [](const object& logits, const object& keys, int64_t num_candidates, int64_t forbidden_id,
         double temperature, double top_p, int64_t top_k, double min_p, bool statistics,
         int64_t threads) {
        const AnyArray first = array_arg("logits", logits);
        const auto run = [&](auto op) {
          return given(op(Arrays{threads}, first, array_arg("keys", keys, &first), num_candidates,
                          forbidden_id, temperature, top_p, top_k, min_p));
        };
        return statistics ? run(sample_candidates_statistics<Arrays>)
                          : run(sample_candidates<Arrays>);
      },
      "logits"_a, "keys"_a, "num_candidates"_a, py::kw_only(), "forbidden_id"_a = -1,
      "temperature"_a = 1.0, "top_p"_a = 1.0, "top_k"_a = 0, "min_p"_a = 0.0,
      "statistics"_a = false, "threads"_a = 1);
  m.def(
      "sample_weights",
      [](const object& weights, const object& keys, int64_t num_candidates, int64_t threads) {
        const AnyArray first = array_arg("weights", weights);
        return given(sample_weights(Arrays{threads}, first, array_arg("keys", keys, &first),
                                    num_candidates));
      },
      "weights"_a, "keys"_a, "num_candidates"_a, py::kw_only(), "threads"_a = 1);
  m.def(
      "token_log_probs",
      [](const object& logits, const object& targets, int64_t forbidden_id, double temperature,
         int64_t threads) {
        const AnyArray first = array_arg("logits", logits);
        return given(token_log_probs(Arrays{threads}, first, array_arg("targets", targets, &first),
                                     forbidden_id, temperature));
      },
      "logits"_a, "targets"_a, py::kw_only(), "forbidden_id"_a = -1, "temperature"_a = 1.0,
      "threads"_a = 1);
  m.def(
      "resample",
      [](const object& log_weights, const object& keys) {
        const AnyArray first = array_arg("log_weights", log_weights);
        return given(resample(Arrays{}, first, array_arg("keys", keys, &first)));
      },
      "log_weights"_a, "keys"_a);
  m.def(
      "residual_draw",
      [](const object& logits_p, const object& logits_q, const object& draft, const object& keys,
         int64_t forbidden_p, int64_t forbidden_q, double temperature_p, double temperature_q,
         int64_t threads) {
        const AnyArray first = array_arg("logits_p", logits_p);
        return given(residual_draw(Arrays{threads}, first, array_arg("logits_q", logits_q, &first),
                                   array_arg("draft", draft, &first),
                                   array_arg("keys", keys, &first), forbidden_p, forbidden_q,
                                   temperature_p, temperature_q));
      },
      "logits_p"_a, "logits_q"_a, "draft"_a, "keys"_a, py::kw_only(), "forbidden_p"_a = -1,
      "forbidden_q"_a = -1, "temperature_p"_a = 1.0, "temperature_q"_a = 1.0, "threads"_a = 1);
  m.def(
      "reveal_steps",
      [](const object& keys, int64_t length, const object& mask_probs) {
        const AnyArray first = array_arg("keys", keys);
        return given(
            reveal_steps(Arrays{}, first, length, array_arg("mask_probs", mask_probs, &first)));
      },
      "keys"_a, "length"_a, "mask_probs"_a);
}
