// edlm_engine._C: facts of the build, and the ops on NumPy arrays for callers without torch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <algorithm>
#include <string>
#include <thread>
#include <vector>

#include "../cpu/row_pass.h"
#include "../ring/ops.h"

namespace py = pybind11;

namespace edlm::ring {
namespace {

// Arrays for the ops of ring/ops.h. The rows are split over threads of its own: there is no
// framework here whose threads to use.
struct NumPy {
  using Array = py::array;
  static constexpr const char* kLogitTypes =
      "float32, float16 or uint16 (the bits of bfloat16, which NumPy lacks)";

  int threads = 1;

  [[noreturn]] static void fail(const std::string& message) { throw py::value_error(message); }

  static Type type(const py::array& array) {
    const char kind = array.dtype().kind();
    const auto bytes = array.itemsize();
    if (foreign_order(array)) return Type::kOther;
    if (kind == 'f' && bytes == 4) return Type::kFloat32;
    if (kind == 'f' && bytes == 2) return Type::kFloat16;
    if (kind == 'f' && bytes == 8) return Type::kFloat64;
    if (kind == 'u' && bytes == 2) return Type::kBFloat16;
    if (kind == 'i' && bytes == 8) return Type::kInt64;
    return Type::kOther;
  }
  static int64_t dim(const py::array& array) { return array.ndim(); }
  static int64_t size(const py::array& array, int64_t d) { return array.shape(d); }
  static int64_t stride(const py::array& array, int64_t d) {
    require<NumPy>(array.strides(d) % array.itemsize() == 0, "strides must be whole elements, got ",
                   array.strides(d), " bytes");
    return array.strides(d) / array.itemsize();
  }
  static std::string describe(const py::array& array) {
    return std::string(py::str(array.dtype())) +
           (foreign_order(array) ? " (not this machine's byte order) " : " ") +
           shape({array.shape(), array.shape() + array.ndim()});
  }
  static bool on_host(const py::array&) { return true; }
  static bool same_device(const py::array&, const py::array&) { return true; }
  static const void* data(const py::array& array) { return array.data(); }
  static py::array contiguous(const py::array& array) {
    const py::array copy = py::array::ensure(array, py::array::c_style);
    if (!copy) throw py::error_already_set();
    return copy;
  }
  // NumPy's own MemoryError says how much was wanted.
  static py::array empty(const char*, const char*, const py::array&,
                         const std::vector<int64_t>& sizes, Type type) {
    return py::array(py::dtype(name(type)), sizes);
  }

  void run(const StreamKeysArgs& args, const py::array&) const {
    split(cpu::stream_keys, args, args.count, "seeds");
  }
  void run(const SampleCandidatesArgs& args, const py::array&) const {
    split(cpu::sample_candidates, args, args.rows, "logits");
  }
  void run(const TokenLogProbsArgs& args, const py::array&) const {
    split(cpu::token_log_probs, args, args.rows, "logits");
  }
  void run(const ResampleArgs& args, const py::array&) const {
    split(cpu::resample, args, args.batch, "log_weights");
  }
  void run(const RevealStepsArgs& args, const py::array&) const {
    split(cpu::reveal_steps, args, args.batch, "keys");
  }

 private:
  static bool foreign_order(const py::array& array) {
    const char order = array.dtype().byteorder();
    return order != '=' && order != '|';
  }

  template <class Args>
  void split(Status (*op)(const Args&, int64_t, int64_t), const Args& args, int64_t rows,
             const char* what) const {
    require<NumPy>(threads >= 1, "threads must be at least 1, got ", threads);
    const int64_t parts = std::max<int64_t>(1, std::min<int64_t>(threads, rows));
    std::vector<Status> status(parts);
    {
      const py::gil_scoped_release release;
      std::vector<std::jthread> workers;
      for (int64_t p = 0; p < parts; ++p) {
        workers.emplace_back(
            [&, p] { status[p] = op(args, rows * p / parts, rows * (p + 1) / parts); });
      }
    }
    for (const Status& s : status) check<NumPy>(s, what);
  }
};

py::dict build_info() {
  py::dict info;
  info["compiler"] = __VERSION__;
  info["cpu_isa"] = cpu::row_pass().name;
  return info;
}

}  // namespace
}  // namespace edlm::ring

PYBIND11_MODULE(_C, m) {
  using namespace pybind11::literals;
  using namespace edlm::ring;
  using py::array;
  m.doc() =
      "Facts of the build, and the ops on NumPy arrays (see edlm_engine.ops for their meaning).";
  m.def("build_info", &build_info);
  m.def(
      "stream_keys",
      [](const array& seeds, const array& coordinates) {
        return stream_keys(NumPy{}, seeds, coordinates);
      },
      "seeds"_a, "coordinates"_a);
  m.def(
      "sample_candidates",
      [](const array& logits, const array& keys, int64_t num_candidates, int64_t forbidden_id,
         double temperature, double top_p, int threads) {
        return sample_candidates(NumPy{threads}, logits, keys, num_candidates, forbidden_id,
                                 temperature, top_p);
      },
      "logits"_a, "keys"_a, "num_candidates"_a, py::kw_only(), "forbidden_id"_a = -1,
      "temperature"_a = 1.0, "top_p"_a = 1.0, "threads"_a = 1);
  m.def(
      "token_log_probs",
      [](const array& logits, const array& targets, int64_t forbidden_id, double temperature,
         int threads) {
        return token_log_probs(NumPy{threads}, logits, targets, forbidden_id, temperature);
      },
      "logits"_a, "targets"_a, py::kw_only(), "forbidden_id"_a = -1, "temperature"_a = 1.0,
      "threads"_a = 1);
  m.def(
      "resample",
      [](const array& log_weights, const array& keys) {
        return resample(NumPy{}, log_weights, keys);
      },
      "log_weights"_a, "keys"_a);
  m.def(
      "reveal_steps",
      [](const array& keys, int64_t length, const array& mask_probs) {
        return reveal_steps(NumPy{}, keys, length, mask_probs);
      },
      "keys"_a, "length"_a, "mask_probs"_a);
}
