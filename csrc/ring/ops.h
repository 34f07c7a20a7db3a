// The ops for every ring: check the arguments, allocate, fill the struct, run. Templated over a
// backend, which is a kind of array and a way to run. A backend B has
//   B::Array
//   B::kLogitTypes                          what logits may be, in words
//   B::fail(message)                        throws
//   B::type(a), B::dim(a), B::size(a, d), B::stride(a, d)   the stride in elements
//   B::describe(a)                          "float32 [2, 7]"
//   B::on_host(a), B::same_device(a, b)
//   B::contiguous(a), B::data(a)
//   B::empty(op, what, like, sizes, type)   throws if there is no room
//   run(args, like)                         on the device of `like`; sees to the status
//
// Arguments are checked here and nowhere else. A message names the argument, what was wanted and
// what came:
//   keys must be int64 with shape [7], got float32 [7]
#pragma once

#include <cstdint>
#include <initializer_list>
#include <sstream>
#include <string>
#include <tuple>
#include <vector>

#include "edlm/resample.h"
#include "edlm/residual_draw.h"
#include "edlm/reveal_steps.h"
#include "edlm/row_sampling.h"
#include "edlm/sample_candidates.h"
#include "edlm/sample_weights.h"
#include "edlm/stream_keys.h"
#include "edlm/token_log_probs.h"

namespace edlm::ring {

enum class Type { kFloat32, kBFloat16, kFloat16, kFloat64, kInt64, kByte, kBool, kOther };

inline const char* name(Type type) {
  const char* const names[] = {"float32", "bfloat16", "float16", "float64",
                               "int64",   "uint8",    "bool",    "another dtype"};
  return names[int(type)];
}

inline int64_t size_of(Type type) {
  const int64_t sizes[] = {4, 2, 2, 8, 8, 1, 1, 0};
  return sizes[int(type)];
}

inline std::string shape(const std::vector<int64_t>& sizes) {
  std::ostringstream text;
  text << "[";
  for (size_t d = 0; d < sizes.size(); ++d) text << (d ? ", " : "") << sizes[d];
  text << "]";
  return text.str();
}

template <class B, class... Parts>
void require(bool holds, const Parts&... parts) {
  if (holds) return;
  std::ostringstream message;
  (message << ... << parts);
  B::fail(message.str());
}

template <class B>
void require_device(const typename B::Array& array, const char* what, const typename B::Array& like,
                    const char* like_what) {
  require<B>(B::same_device(array, like), what, " must be on the device of ", like_what);
}

// A contiguous int64 array of shape [size].
template <class B>
typename B::Array int64_arg(const typename B::Array& array, const char* what, int64_t size) {
  require<B>(B::type(array) == Type::kInt64 && B::dim(array) == 1 && B::size(array, 0) == size,
             what, " must be int64 with shape [", size, "], got ", B::describe(array));
  return B::contiguous(array);
}

template <class T, class B>
const T* in(const typename B::Array& array) {
  return static_cast<const T*>(B::data(array));
}
// Of an array that this op made.
template <class T, class B>
T* out(const typename B::Array& array) {
  return static_cast<T*>(const_cast<void*>(B::data(array)));
}

struct Logits {
  const void* data;
  DType dtype;
  int64_t rows, vocab, row_stride;
  float temperature;
};

// A matrix of floats that an op reads by rows; `what` is its name.
template <class B>
Logits rows_arg(const typename B::Array& rows, const char* what) {
  const Type type = B::type(rows);
  require<B>(type == Type::kFloat32 || type == Type::kBFloat16 || type == Type::kFloat16, what,
             " must be ", B::kLogitTypes, ", got ", B::describe(rows));
  require<B>(B::dim(rows) == 2 && B::size(rows, 1) >= 1, what,
             " must have shape [rows, vocab] with vocab >= 1, got ", B::describe(rows));
  const int64_t vocab = B::size(rows, 1);
  require<B>(vocab == 1 || B::stride(rows, 1) == 1, what,
             " must be contiguous in its last dimension, got stride ", B::stride(rows, 1));
  const DType dtype = type == Type::kFloat32    ? DType::kFloat32
                      : type == Type::kBFloat16 ? DType::kBFloat16
                                                : DType::kFloat16;
  return {B::data(rows), dtype, B::size(rows, 0), vocab, B::stride(rows, 0), 1};
}

// What the arguments of an op's logits are called.
struct LogitNames {
  const char* logits = "logits";
  const char* forbidden_id = "forbidden_id";
  const char* temperature = "temperature";
};

template <class B>
Logits logits_arg(const typename B::Array& logits, int64_t forbidden_id, double temperature,
                  const LogitNames& names = {}) {
  Logits rows = rows_arg<B>(logits, names.logits);
  require<B>(forbidden_id >= -1 && forbidden_id < rows.vocab, names.forbidden_id,
             " must be -1 or in [0, ", rows.vocab, "), got ", forbidden_id);
  require<B>(temperature >= kMinTemperature && temperature <= kMaxTemperature, names.temperature,
             " must be in [", kMinTemperature, ", ", kMaxTemperature, "], got ", temperature);
  rows.temperature = static_cast<float>(temperature);
  return rows;
}

// Throws unless the status is good; `arguments` are those that a bad row may be a row of.
template <class B>
void check(Status status, std::initializer_list<const char*> arguments) {
  require<B>(status.code != Code::kDevice, "CUDA error ", status.row);
  const char* const argument = arguments.begin()[status.argument];
  require<B>(status.code != Code::kNotANumber, argument, " row ", status.row, " holds NaN or +inf");
  require<B>(status.code != Code::kNothingLeft, argument, " row ", status.row,
             " allows nothing: every entry is -inf");
  require<B>(status.code != Code::kBadWeight, argument, " row ", status.row,
             " holds NaN, a negative number or +inf, or sums to more than float32 holds");
  require<B>(status.code != Code::kNoWeight, argument, " row ", status.row,
             " allows nothing: every entry is 0");
  require<B>(status.code != Code::kBadTarget, argument, " row ", status.row,
             " is outside the vocabulary");
}

template <class B>
typename B::Array stream_keys(const B& backend, const typename B::Array& seeds,
                              const typename B::Array& coordinates) {
  require<B>(B::type(seeds) == Type::kInt64 && B::dim(seeds) == 1,
             "seeds must be int64 with shape [count], got ", B::describe(seeds));
  const int64_t count = B::size(seeds, 0);
  require<B>(B::type(coordinates) == Type::kInt64 && B::dim(coordinates) == 2 &&
                 B::size(coordinates, 0) == count,
             "coordinates must be int64 with shape [", count, ", dims], got ",
             B::describe(coordinates));
  require_device<B>(coordinates, "coordinates", seeds, "seeds");
  const auto seeds_ = B::contiguous(seeds), coordinates_ = B::contiguous(coordinates);
  const auto keys = B::empty("stream_keys", "keys", seeds, {count}, Type::kInt64);
  const StreamKeysArgs args = {.seeds = in<int64_t, B>(seeds_),
                               .coordinates = in<int64_t, B>(coordinates_),
                               .count = count,
                               .dims = B::size(coordinates, 1),
                               .keys = out<int64_t, B>(keys)};
  backend.run(args, seeds);
  return keys;
}

// `statistics` makes room for those of so many rows, or is null.
template <class B>
std::tuple<typename B::Array, typename B::Array> draw_candidates(
    const B& backend, const typename B::Array& logits, const typename B::Array& keys,
    int64_t num_candidates, int64_t forbidden_id, double temperature, double top_p, int64_t top_k,
    double min_p, typename B::Array* statistics) {
  const Logits rows = logits_arg<B>(logits, forbidden_id, temperature);
  const auto keys_ = int64_arg<B>(keys, "keys", rows.rows);
  require_device<B>(keys, "keys", logits, "logits");
  require<B>(num_candidates >= 1, "num_candidates must be at least 1, got ", num_candidates);
  require<B>(top_p > 0 && top_p <= 1, "top_p must be in (0, 1], got ", top_p);
  require<B>(top_k >= 0, "top_k must be at least 1, or 0 for none, got ", top_k);
  require<B>(min_p >= 0 && min_p <= 1, "min_p must be in [0, 1], got ", min_p);
  const std::vector<int64_t> sizes = {rows.rows, num_candidates};
  const auto tokens = B::empty("sample_candidates", "tokens", logits, sizes, Type::kInt64);
  const auto log_q = B::empty("sample_candidates", "log_q", logits, sizes, Type::kFloat32);
  if (statistics) {
    *statistics =
        B::empty("sample_candidates", "statistics", logits, {rows.rows, 3}, Type::kFloat32);
  }
  const SampleCandidatesArgs args = {
      .logits = rows.data,
      .dtype = rows.dtype,
      .rows = rows.rows,
      .vocab = rows.vocab,
      .row_stride = rows.row_stride,
      .keys = in<int64_t, B>(keys_),
      .num_candidates = num_candidates,
      .forbidden_id = forbidden_id,
      .temperature = rows.temperature,
      .top_k = top_k,
      .top_p = top_p,
      .min_p = min_p,
      .tokens = out<int64_t, B>(tokens),
      .log_q = out<float, B>(log_q),
      .statistics = statistics ? out<float, B>(*statistics) : nullptr};
  backend.run(args, logits);
  return {tokens, log_q};
}

template <class B>
std::tuple<typename B::Array, typename B::Array> sample_candidates(
    const B& backend, const typename B::Array& logits, const typename B::Array& keys,
    int64_t num_candidates, int64_t forbidden_id, double temperature, double top_p, int64_t top_k,
    double min_p) {
  return draw_candidates(backend, logits, keys, num_candidates, forbidden_id, temperature, top_p,
                         top_k, min_p, nullptr);
}

template <class B>
std::tuple<typename B::Array, typename B::Array, typename B::Array> sample_candidates_statistics(
    const B& backend, const typename B::Array& logits, const typename B::Array& keys,
    int64_t num_candidates, int64_t forbidden_id, double temperature, double top_p, int64_t top_k,
    double min_p) {
  typename B::Array statistics;
  const auto [tokens, log_q] = draw_candidates(backend, logits, keys, num_candidates, forbidden_id,
                                               temperature, top_p, top_k, min_p, &statistics);
  return {tokens, log_q, statistics};
}

template <class B>
std::tuple<typename B::Array, typename B::Array> sample_weights(const B& backend,
                                                                const typename B::Array& weights,
                                                                const typename B::Array& keys,
                                                                int64_t num_candidates) {
  const Logits rows = rows_arg<B>(weights, "weights");
  const auto keys_ = int64_arg<B>(keys, "keys", rows.rows);
  require_device<B>(keys, "keys", weights, "weights");
  require<B>(num_candidates >= 1, "num_candidates must be at least 1, got ", num_candidates);
  const std::vector<int64_t> sizes = {rows.rows, num_candidates};
  const auto tokens = B::empty("sample_weights", "tokens", weights, sizes, Type::kInt64);
  const auto log_q = B::empty("sample_weights", "log_q", weights, sizes, Type::kFloat32);
  const SampleWeightsArgs args = {.weights = rows.data,
                                  .dtype = rows.dtype,
                                  .rows = rows.rows,
                                  .vocab = rows.vocab,
                                  .row_stride = rows.row_stride,
                                  .keys = in<int64_t, B>(keys_),
                                  .num_candidates = num_candidates,
                                  .tokens = out<int64_t, B>(tokens),
                                  .log_q = out<float, B>(log_q)};
  backend.run(args, weights);
  return {tokens, log_q};
}

template <class B>
typename B::Array token_log_probs(const B& backend, const typename B::Array& logits,
                                  const typename B::Array& targets, int64_t forbidden_id,
                                  double temperature) {
  const Logits rows = logits_arg<B>(logits, forbidden_id, temperature);
  const auto targets_ = int64_arg<B>(targets, "targets", rows.rows);
  require_device<B>(targets, "targets", logits, "logits");
  const auto log_probs =
      B::empty("token_log_probs", "log_probs", logits, {rows.rows}, Type::kFloat32);
  const TokenLogProbsArgs args = {.logits = rows.data,
                                  .dtype = rows.dtype,
                                  .rows = rows.rows,
                                  .vocab = rows.vocab,
                                  .row_stride = rows.row_stride,
                                  .targets = in<int64_t, B>(targets_),
                                  .forbidden_id = forbidden_id,
                                  .temperature = rows.temperature,
                                  .log_probs = out<float, B>(log_probs)};
  backend.run(args, logits);
  return log_probs;
}

template <class B>
std::tuple<typename B::Array, typename B::Array, typename B::Array> resample(
    const B& backend, const typename B::Array& log_weights, const typename B::Array& keys) {
  require<B>(B::type(log_weights) == Type::kFloat32 && B::dim(log_weights) == 2 &&
                 B::size(log_weights, 1) >= 1,
             "log_weights must be float32 with shape [batch, candidates], candidates >= 1, got ",
             B::describe(log_weights));
  const int64_t batch = B::size(log_weights, 0);
  const auto keys_ = int64_arg<B>(keys, "keys", batch);
  require_device<B>(keys, "keys", log_weights, "log_weights");
  const auto log_weights_ = B::contiguous(log_weights);
  const auto choice = B::empty("resample", "choice", log_weights, {batch}, Type::kInt64);
  const auto ess = B::empty("resample", "ess", log_weights, {batch}, Type::kFloat32);
  const auto log_mean = B::empty("resample", "log_mean", log_weights, {batch}, Type::kFloat32);
  const ResampleArgs args = {.log_weights = in<float, B>(log_weights_),
                             .batch = batch,
                             .candidates = B::size(log_weights, 1),
                             .keys = in<int64_t, B>(keys_),
                             .choice = out<int64_t, B>(choice),
                             .ess = out<float, B>(ess),
                             .log_mean_weight = out<float, B>(log_mean)};
  backend.run(args, log_weights);
  return {choice, ess, log_mean};
}

template <class B>
std::tuple<typename B::Array, typename B::Array, typename B::Array> residual_draw(
    const B& backend, const typename B::Array& logits_p, const typename B::Array& logits_q,
    const typename B::Array& draft, const typename B::Array& keys, int64_t forbidden_p,
    int64_t forbidden_q, double temperature_p, double temperature_q) {
  const Logits p = logits_arg<B>(logits_p, forbidden_p, temperature_p,
                                 {"logits_p", "forbidden_p", "temperature_p"});
  const Logits q = logits_arg<B>(logits_q, forbidden_q, temperature_q,
                                 {"logits_q", "forbidden_q", "temperature_q"});
  require<B>(q.dtype == p.dtype && q.rows == p.rows, "logits_q must be ", name(B::type(logits_p)),
             " with ", p.rows, " rows, as logits_p, got ", B::describe(logits_q));
  require_device<B>(logits_q, "logits_q", logits_p, "logits_p");
  const auto draft_ = int64_arg<B>(draft, "draft", p.rows);
  require_device<B>(draft, "draft", logits_p, "logits_p");
  const auto keys_ = int64_arg<B>(keys, "keys", p.rows);
  require_device<B>(keys, "keys", logits_p, "logits_p");
  const auto made = [&](const char* what, Type type) {
    return B::empty("residual_draw", what, logits_p, {p.rows}, type);
  };
  const auto token = made("token", Type::kInt64), accepted = made("accepted", Type::kBool),
             log_p = made("log_p", Type::kFloat32);
  const auto rows_of = [](const Logits& rows, int64_t forbidden_id) {
    return LogitRows{rows.data,       rows.dtype,   rows.rows,       rows.vocab,
                     rows.row_stride, forbidden_id, rows.temperature};
  };
  const ResidualDrawArgs args = {.p = rows_of(p, forbidden_p),
                                 .q = rows_of(q, forbidden_q),
                                 .draft = in<int64_t, B>(draft_),
                                 .keys = in<int64_t, B>(keys_),
                                 .tokens = out<int64_t, B>(token),
                                 .accepted = out<uint8_t, B>(accepted),
                                 .log_p = out<float, B>(log_p)};
  backend.run(args, logits_p);
  return {token, accepted, log_p};
}

template <class B>
typename B::Array reveal_steps(const B& backend, const typename B::Array& keys, int64_t length,
                               const typename B::Array& mask_probs) {
  require<B>(B::type(keys) == Type::kInt64 && B::dim(keys) == 1,
             "keys must be int64 with shape [batch], got ", B::describe(keys));
  require<B>(length >= 0, "length must not be negative, got ", length);
  require<B>(B::type(mask_probs) == Type::kFloat64 && B::dim(mask_probs) == 1 &&
                 B::size(mask_probs, 0) >= 2,
             "mask_probs must be float64 with shape [steps + 1], steps >= 1, got ",
             B::describe(mask_probs));
  require_device<B>(mask_probs, "mask_probs", keys, "keys");
  const auto keys_ = B::contiguous(keys), mask_probs_ = B::contiguous(mask_probs);
  const double* probs = in<double, B>(mask_probs_);
  // On a device the values are the caller's promise: reading them here would wait for it.
  for (int64_t i = 0; B::on_host(mask_probs) && i < B::size(mask_probs, 0); ++i) {
    require<B>(probs[i] >= 0 && probs[i] <= 1 && (i == 0 || probs[i] <= probs[i - 1]),
               "mask_probs must not increase and lie in [0, 1], got ", probs[i], " at ", i);
  }
  const int64_t batch = B::size(keys, 0);
  const auto steps = B::empty("reveal_steps", "steps", keys, {batch, length}, Type::kInt64);
  const RevealStepsArgs args = {.keys = in<int64_t, B>(keys_),
                                .batch = batch,
                                .length = length,
                                .num_steps = B::size(mask_probs, 0) - 1,
                                .mask_probs = probs,
                                .steps = out<int64_t, B>(steps)};
  backend.run(args, keys);
  return steps;
}

}  // namespace edlm::ring
