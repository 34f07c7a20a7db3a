// resample on CUDA: one warp per sequence, in fp64 as on the CPU.
#pragma once

#include "block.cuh"
#include "edlm/resample.h"

namespace edlm::cuda {

inline constexpr int kResampleThreads = 128;

EDLM_KERNEL(kResampleThreads) resample_kernel(ResampleArgs args) {
  const int64_t b = (block_index() * kResampleThreads + thread_index()) / kLanes;
  if (b >= args.batch) return;
  const float* const log_weights = args.log_weights + b * args.candidates;
  float max = -kInf;
  bool number = true;
  for (int64_t k = lane(); k < args.candidates; k += kLanes) {
    number = number && log_weights[k] < kInf;
    max = max_of(max, log_weights[k]);
  }
  max = warp_max(max);
  const bool good = ballot(number) == ~0u && max > -kInf;
  const auto weight_of = [&](int64_t k) { return exp(double(log_weights[k]) - double(max)); };
  double sum = 0, sum_squares = 0;
  for (int64_t k = lane(); k < args.candidates; k += kLanes) {
    const double weight = weight_of(k);
    sum += weight;
    sum_squares += weight * weight;
  }
  sum = warp_sum(sum);
  sum_squares = warp_sum(sum_squares);
  int64_t choice = -1;
  if (good) {
    choice = warp_pick(args.candidates, sum, resample_uniform(args.keys[b]), weight_of).index;
  }
  if (lane() != 0) return;
  args.choice[b] = choice;
  args.ess[b] = good ? float(sum * sum / sum_squares) : kNaN;
  args.log_mean_weight[b] = good ? float(double(max) + log(sum / double(args.candidates))) : kNaN;
}

}  // namespace edlm::cuda
