// resample on CUDA: one warp per sequence.
#pragma once

#include "warp_resample.cuh"

namespace edlm::cuda {

inline constexpr int kResampleThreads = 128;

EDLM_KERNEL(kResampleThreads) resample_kernel(ResampleArgs args) {
  const int64_t b = (block_index() * kResampleThreads + thread_index()) / kLanes;
  if (b >= args.batch) return;
  const float* const log_weights = args.log_weights + b * args.candidates;
  const Resampled chosen =
      warp_resample(args.candidates, args.keys[b], [&](int64_t k) { return log_weights[k]; });
  if (lane() != 0) return;
  args.choice[b] = chosen.choice;
  args.ess[b] = chosen.ess;
  args.log_mean_weight[b] = chosen.log_mean_weight;
}

}  // namespace edlm::cuda
