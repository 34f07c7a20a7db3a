// The sum over a block, in fp64. On the grid of on_grid() its order does not matter.
#pragma once

#include "block.cuh"

namespace edlm::cuda {

// With room for kThreads / kLanes doubles of shared memory; thread 0 gets the sum. Once in a
// kernel.
template <int kThreads>
EDLM_DEVICE double block_sum(double value) {
  const SharedPtr<double> sums = dynamic_shared();
  value = warp_sum(value);
  if (lane() == 0) sums[thread_index() / kLanes] = value;
  sync_block();
  double total = 0;
  for (int w = 0; thread_index() == 0 && w < kThreads / kLanes; ++w) total += sums[w];
  return total;
}

template <int kThreads>
inline constexpr int64_t kBlockSumBytes = kThreads / kLanes * sizeof(double);

}  // namespace edlm::cuda
