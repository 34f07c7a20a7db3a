// edlm_engine._C: facts of the build, and the ops on NumPy arrays for callers without torch.
#include <pybind11/numpy.h>
#include <pybind11/pybind11.h>

#include <sstream>
#include <string>
#include <thread>
#include <vector>

#include "../cpu/row_pass.h"
#include "edlm/resample.h"
#include "edlm/reveal_steps.h"
#include "edlm/sample_candidates.h"
#include "edlm/stream_keys.h"
#include "edlm/token_log_probs.h"

namespace py = pybind11;

namespace edlm {
namespace {

template <class T>
using Contiguous = py::array_t<T, py::array::c_style>;
using Keys = Contiguous<int64_t>;

template <class... Parts>
void require(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream message;
  (message << ... << parts);
  throw py::value_error(message.str());
}

// Splits the rows over `threads` of its own: there is no framework here whose threads to use.
template <class Args>
void run(Status (*op)(const Args&, int64_t, int64_t), const Args& args, int64_t rows, int threads,
         const char* what) {
  require(threads >= 1, "threads must be at least 1, got ", threads);
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
  for (const Status& s : status) {
    require(s.code != Code::kNotANumber, what, " row ", s.row, " holds NaN or +inf");
    require(s.code != Code::kNothingLeft, what, " row ", s.row,
            " allows nothing: every entry is -inf");
    require(s.code != Code::kBadTarget, "targets row ", s.row, " is outside the vocabulary");
  }
}

struct Logits {
  const void* data;
  DType dtype;
  int64_t rows, vocab, row_stride;
};

// float32 or float16; uint16 holds the bits of bfloat16, which NumPy lacks.
Logits logits_arg(const py::array& logits, int64_t forbidden_id, double temperature) {
  const char kind = logits.dtype().kind();
  const auto bytes = logits.itemsize();
  const bool f32 = kind == 'f' && bytes == 4, f16 = kind == 'f' && bytes == 2;
  require(f32 || f16 || (kind == 'u' && bytes == 2),
          "logits must be float32, float16 or uint16 (the bits of bfloat16), got ",
          std::string(py::str(logits.dtype())));
  require(logits.ndim() == 2 && logits.shape(1) >= 1,
          "logits must have shape [rows, vocab] with vocab >= 1, got ", logits.ndim(),
          " dimensions");
  require(logits.shape(1) == 1 || logits.strides(1) == bytes,
          "logits must be contiguous in its last dimension, got a stride of ", logits.strides(1),
          " bytes");
  require(logits.strides(0) % bytes == 0, "logits rows must be whole elements apart");
  require(forbidden_id >= -1 && forbidden_id < logits.shape(1),
          "forbidden_id must be -1 or in [0, ", logits.shape(1), "), got ", forbidden_id);
  require(temperature > 0 && std::isfinite(2.0f / float(temperature)),
          "temperature must be positive, got ", temperature);
  return {logits.data(),
          f32   ? DType::kFloat32
          : f16 ? DType::kFloat16
                : DType::kBFloat16,
          logits.shape(0), logits.shape(1), logits.strides(0) / bytes};
}

void require_size(const py::array& array, const char* what, int64_t size) {
  require(array.ndim() == 1 && array.shape(0) == size, what, " must have shape [", size, "]");
}

py::tuple sample_candidates(const py::array& logits, const Keys& keys, int64_t num_candidates,
                            int64_t forbidden_id, double temperature, double top_p, int threads) {
  const Logits rows = logits_arg(logits, forbidden_id, temperature);
  require_size(keys, "keys", rows.rows);
  require(num_candidates >= 1, "num_candidates must be at least 1, got ", num_candidates);
  require(top_p > 0 && top_p <= 1, "top_p must be in (0, 1], got ", top_p);
  py::array_t<int64_t> tokens({rows.rows, num_candidates});
  py::array_t<float> log_q({rows.rows, num_candidates});
  const SampleCandidatesArgs args = {.logits = rows.data,
                                     .dtype = rows.dtype,
                                     .rows = rows.rows,
                                     .vocab = rows.vocab,
                                     .row_stride = rows.row_stride,
                                     .keys = keys.data(),
                                     .num_candidates = num_candidates,
                                     .forbidden_id = forbidden_id,
                                     .temperature = float(temperature),
                                     .top_p = float(top_p),
                                     .tokens = tokens.mutable_data(),
                                     .log_q = log_q.mutable_data()};
  run(cpu::sample_candidates, args, rows.rows, threads, "logits");
  return py::make_tuple(tokens, log_q);
}

py::array_t<float> token_log_probs(const py::array& logits, const Keys& targets,
                                   int64_t forbidden_id, double temperature, int threads) {
  const Logits rows = logits_arg(logits, forbidden_id, temperature);
  require_size(targets, "targets", rows.rows);
  py::array_t<float> log_probs(rows.rows);
  const TokenLogProbsArgs args = {.logits = rows.data,
                                  .dtype = rows.dtype,
                                  .rows = rows.rows,
                                  .vocab = rows.vocab,
                                  .row_stride = rows.row_stride,
                                  .targets = targets.data(),
                                  .forbidden_id = forbidden_id,
                                  .temperature = float(temperature),
                                  .log_probs = log_probs.mutable_data()};
  run(cpu::token_log_probs, args, rows.rows, threads, "logits");
  return log_probs;
}

py::tuple resample(const Contiguous<float>& log_weights, const Keys& keys) {
  require(log_weights.ndim() == 2 && log_weights.shape(1) >= 1,
          "log_weights must have shape [batch, candidates]");
  const int64_t batch = log_weights.shape(0);
  require_size(keys, "keys", batch);
  py::array_t<int64_t> choice(batch);
  py::array_t<float> ess(batch), log_mean_weight(batch);
  const ResampleArgs args = {.log_weights = log_weights.data(),
                             .batch = batch,
                             .candidates = log_weights.shape(1),
                             .keys = keys.data(),
                             .choice = choice.mutable_data(),
                             .ess = ess.mutable_data(),
                             .log_mean_weight = log_mean_weight.mutable_data()};
  run(cpu::resample, args, batch, 1, "log_weights");
  return py::make_tuple(choice, ess, log_mean_weight);
}

py::array_t<int64_t> reveal_steps(const Keys& keys, int64_t length,
                                  const Contiguous<double>& mask_probs) {
  require(keys.ndim() == 1, "keys must have shape [batch]");
  require(length >= 0, "length must not be negative, got ", length);
  require(mask_probs.ndim() == 1 && mask_probs.shape(0) >= 2,
          "mask_probs must have shape [steps + 1], steps >= 1");
  py::array_t<int64_t> steps({int64_t(keys.shape(0)), length});
  const RevealStepsArgs args = {.keys = keys.data(),
                                .batch = keys.shape(0),
                                .length = length,
                                .num_steps = mask_probs.shape(0) - 1,
                                .mask_probs = mask_probs.data(),
                                .steps = steps.mutable_data()};
  run(cpu::reveal_steps, args, args.batch, 1, "keys");
  return steps;
}

py::array_t<int64_t> stream_keys(const Keys& seeds, const Keys& coordinates) {
  require(seeds.ndim() == 1 && coordinates.ndim() == 2 && coordinates.shape(0) == seeds.shape(0),
          "seeds and coordinates must have shapes [count] and [count, dims]");
  py::array_t<int64_t> keys(seeds.shape(0));
  const StreamKeysArgs args = {.seeds = seeds.data(),
                               .coordinates = coordinates.data(),
                               .count = seeds.shape(0),
                               .dims = coordinates.shape(1),
                               .keys = keys.mutable_data()};
  run(cpu::stream_keys, args, args.count, 1, "seeds");
  return keys;
}

py::dict build_info() {
  py::dict info;
  info["compiler"] = __VERSION__;
  info["cpu_isa"] = cpu::row_pass().name;
  return info;
}

}  // namespace
}  // namespace edlm

PYBIND11_MODULE(_C, m) {
  using namespace pybind11::literals;
  m.doc() =
      "Facts of the build, and the ops on NumPy arrays (see edlm_engine.ops for their meaning).";
  m.def("build_info", &edlm::build_info);
  m.def("stream_keys", &edlm::stream_keys, "seeds"_a, "coordinates"_a);
  m.def("sample_candidates", &edlm::sample_candidates, "logits"_a, "keys"_a, "num_candidates"_a,
        py::kw_only(), "forbidden_id"_a = -1, "temperature"_a = 1.0, "top_p"_a = 1.0,
        "threads"_a = 1);
  m.def("token_log_probs", &edlm::token_log_probs, "logits"_a, "targets"_a, py::kw_only(),
        "forbidden_id"_a = -1, "temperature"_a = 1.0, "threads"_a = 1);
  m.def("resample", &edlm::resample, "log_weights"_a, "keys"_a);
  m.def("reveal_steps", &edlm::reveal_steps, "keys"_a, "length"_a, "mask_probs"_a);
}
