// sum_log_probs on CUDA: a block to each sequence.
#pragma once

#include "block_sum.cuh"
#include "edlm/sum_log_probs.h"

namespace edlm::cuda {

inline constexpr int kSumThreads = 256;

EDLM_KERNEL(kSumThreads) sum_log_probs_kernel(SumLogProbsArgs args) {
  const int64_t i = block_index(), end = args.end(i);
  double sum = 0;
  for (int64_t r = args.begin(i) + thread_index(); r < end; r += kSumThreads) {
    sum += on_grid(args.log_probs[r]);
  }
  sum = block_sum<kSumThreads>(sum);
  if (thread_index() == 0) args.sums[i] = sum;
}

}  // namespace edlm::cuda
