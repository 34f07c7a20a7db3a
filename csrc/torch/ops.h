// The ops behind the schemas, for every backend: check, allocate, fill the struct, run.
//
// A backend has run(args, like) for the struct of every op; `like` is the tensor whose device it
// is.
#pragma once

#include <torch/csrc/stable/library.h>

#include <tuple>

#include "args.h"

namespace edlm::ring {

template <class Backend>
Tensor stream_keys(const Tensor& seeds, const Tensor& coordinates) {
  require(seeds.scalar_type() == ScalarType::Long && seeds.dim() == 1,
          "seeds must be int64 with shape [count]", got(seeds));
  const int64_t count = seeds.size(0);
  require(coordinates.scalar_type() == ScalarType::Long && coordinates.dim() == 2 &&
              coordinates.size(0) == count,
          "coordinates must be int64 with shape [", count, ", dims]", got(coordinates));
  require_device(coordinates, "coordinates", seeds, "seeds");
  const Tensor seeds_ = torch::stable::contiguous(seeds);
  const Tensor coordinates_ = torch::stable::contiguous(coordinates);
  Tensor keys = empty(seeds, {count}, ScalarType::Long);
  const StreamKeysArgs args = {.seeds = seeds_.const_data_ptr<int64_t>(),
                               .coordinates = coordinates_.const_data_ptr<int64_t>(),
                               .count = count,
                               .dims = coordinates.size(1),
                               .keys = keys.mutable_data_ptr<int64_t>()};
  Backend::run(args, seeds);
  return keys;
}

template <class Backend>
std::tuple<Tensor, Tensor> sample_candidates(const Tensor& logits, const Tensor& keys,
                                             int64_t num_candidates, int64_t forbidden_id,
                                             double temperature, double top_p) {
  const Logits rows = logits_arg(logits, forbidden_id, temperature);
  const Tensor keys_ = vector_like(keys, "keys", ScalarType::Long, rows.rows);
  require_device(keys, "keys", logits, "logits");
  require(num_candidates >= 1, "num_candidates must be at least 1, got ", num_candidates);
  require(top_p > 0 && top_p <= 1, "top_p must be in (0, 1], got ", top_p);
  Tensor tokens = empty(logits, {rows.rows, num_candidates}, ScalarType::Long);
  Tensor log_q = empty(logits, {rows.rows, num_candidates}, ScalarType::Float);
  const SampleCandidatesArgs args = {.logits = rows.data,
                                     .dtype = rows.dtype,
                                     .rows = rows.rows,
                                     .vocab = rows.vocab,
                                     .row_stride = rows.row_stride,
                                     .keys = keys_.const_data_ptr<int64_t>(),
                                     .num_candidates = num_candidates,
                                     .forbidden_id = forbidden_id,
                                     .temperature = static_cast<float>(temperature),
                                     .top_p = static_cast<float>(top_p),
                                     .tokens = tokens.mutable_data_ptr<int64_t>(),
                                     .log_q = log_q.mutable_data_ptr<float>()};
  Backend::run(args, logits);
  return {tokens, log_q};
}

template <class Backend>
Tensor token_log_probs(const Tensor& logits, const Tensor& targets, int64_t forbidden_id,
                       double temperature) {
  const Logits rows = logits_arg(logits, forbidden_id, temperature);
  const Tensor targets_ = vector_like(targets, "targets", ScalarType::Long, rows.rows);
  require_device(targets, "targets", logits, "logits");
  Tensor log_probs = empty(logits, {rows.rows}, ScalarType::Float);
  const TokenLogProbsArgs args = {.logits = rows.data,
                                  .dtype = rows.dtype,
                                  .rows = rows.rows,
                                  .vocab = rows.vocab,
                                  .row_stride = rows.row_stride,
                                  .targets = targets_.const_data_ptr<int64_t>(),
                                  .forbidden_id = forbidden_id,
                                  .temperature = static_cast<float>(temperature),
                                  .log_probs = log_probs.mutable_data_ptr<float>()};
  Backend::run(args, logits);
  return log_probs;
}

template <class Backend>
std::tuple<Tensor, Tensor, Tensor> resample(const Tensor& log_weights, const Tensor& keys) {
  require(log_weights.scalar_type() == ScalarType::Float && log_weights.dim() == 2 &&
              log_weights.size(1) >= 1,
          "log_weights must be float32 with shape [batch, candidates], candidates >= 1",
          got(log_weights));
  const int64_t batch = log_weights.size(0);
  const Tensor keys_ = vector_like(keys, "keys", ScalarType::Long, batch);
  require_device(keys, "keys", log_weights, "log_weights");
  const Tensor log_weights_ = torch::stable::contiguous(log_weights);
  Tensor choice = empty(log_weights, {batch}, ScalarType::Long);
  Tensor ess = empty(log_weights, {batch}, ScalarType::Float);
  Tensor log_mean_weight = empty(log_weights, {batch}, ScalarType::Float);
  const ResampleArgs args = {.log_weights = log_weights_.const_data_ptr<float>(),
                             .batch = batch,
                             .candidates = log_weights.size(1),
                             .keys = keys_.const_data_ptr<int64_t>(),
                             .choice = choice.mutable_data_ptr<int64_t>(),
                             .ess = ess.mutable_data_ptr<float>(),
                             .log_mean_weight = log_mean_weight.mutable_data_ptr<float>()};
  Backend::run(args, log_weights);
  return {choice, ess, log_mean_weight};
}

template <class Backend>
Tensor reveal_steps(const Tensor& keys, int64_t length, const Tensor& mask_probs) {
  require(keys.scalar_type() == ScalarType::Long && keys.dim() == 1,
          "keys must be int64 with shape [batch]", got(keys));
  require(length >= 0, "length must not be negative, got ", length);
  require(mask_probs.scalar_type() == ScalarType::Double && mask_probs.dim() == 1 &&
              mask_probs.size(0) >= 2,
          "mask_probs must be float64 with shape [steps + 1], steps >= 1", got(mask_probs));
  require_device(mask_probs, "mask_probs", keys, "keys");
  const Tensor keys_ = torch::stable::contiguous(keys);
  const Tensor mask_probs_ = torch::stable::contiguous(mask_probs);
  const double* probs = mask_probs_.const_data_ptr<double>();
  // On a device the values are the caller's promise: reading them here would wait for it.
  for (int64_t i = 0; !mask_probs.is_cuda() && i < mask_probs.size(0); ++i) {
    require(probs[i] >= 0 && probs[i] <= 1 && (i == 0 || probs[i] <= probs[i - 1]),
            "mask_probs must not increase and lie in [0, 1], got ", probs[i], " at ", i);
  }
  Tensor steps = empty(keys, {keys.size(0), length}, ScalarType::Long);
  const RevealStepsArgs args = {.keys = keys_.const_data_ptr<int64_t>(),
                                .batch = keys.size(0),
                                .length = length,
                                .num_steps = mask_probs.size(0) - 1,
                                .mask_probs = probs,
                                .steps = steps.mutable_data_ptr<int64_t>()};
  Backend::run(args, keys);
  return steps;
}

// Inside STABLE_TORCH_LIBRARY_IMPL.
template <class Backend, class Library>
void register_ops(Library& m) {
  m.impl("stream_keys", TORCH_BOX(&edlm::ring::stream_keys<Backend>));
  m.impl("sample_candidates", TORCH_BOX(&edlm::ring::sample_candidates<Backend>));
  m.impl("token_log_probs", TORCH_BOX(&edlm::ring::token_log_probs<Backend>));
  m.impl("resample", TORCH_BOX(&edlm::ring::resample<Backend>));
  m.impl("reveal_steps", TORCH_BOX(&edlm::ring::reveal_steps<Backend>));
}

}  // namespace edlm::ring
