// How the rows of a matrix of logits are dealt to blocks, for every op that reads rows.
#pragma once

#include "row_pass.cuh"

namespace edlm::cuda {

// Shorter rows are read by one warp each, eight to a block.
inline constexpr int64_t kShortRow = 4 * kWarpChunk;
// Longer ones by the eight warps of a block.
inline constexpr int kWarpsPerRow = 8;
// Fewer blocks than this leave multiprocessors idle, so the rows are cut at their chunks.
inline constexpr int64_t kFewRows = 256;
// What every device gives a block without being asked.
inline constexpr int64_t kSharedBytes = 48 * 1024;

struct RowPlan {
  bool short_rows, split;
  int64_t shared;     // doubles of a block's shared memory
  int64_t workspace;  // doubles of device memory; 0 where shared memory holds the sums
};

// `more`: doubles of shared memory that a row wants besides its sums. Then it has a block, however
// short it is.
inline RowPlan row_plan(int64_t rows, int64_t vocab, int64_t more) {
  const int64_t size = sums_size(vocab);
  const bool short_rows = vocab <= kShortRow && more == 0;
  const bool fits = (size + more) * int64_t(sizeof(double)) <= kSharedBytes;
  const bool split = !short_rows && (rows < kFewRows || !fits);
  const int64_t sums = split ? 0 : size * (short_rows ? Team<1>::kPerBlock : 1);
  return {short_rows, split, sums + more, split ? rows * size : 0};
}

// A kernel of (args, workspace, summed), as it is for short rows and for long ones.
template <class Args>
using RowKernel = void (*)(Args, double*, bool);

template <class T, class Args>
Status launch_rows(RowKernel<Args> short_kernel, RowKernel<Args> long_kernel, const Args& args,
                   const RowPlan& plan, void* workspace, void* stream) {
  double* const memory = plan.split ? static_cast<double*>(workspace) : nullptr;
  const int64_t bytes = plan.shared * int64_t(sizeof(double));
  if (plan.short_rows) {
    return launch(short_kernel, ceil_div(args.rows, Team<1>::kPerBlock), Team<1>::kThreads, bytes,
                  stream, args, memory, false);
  }
  if (plan.split) {
    const int64_t warps = args.rows * chunks_of(args.vocab);
    const Status status = launch(sum_rows_kernel<T, Args>, ceil_div(warps * kLanes, kSumThreads),
                                 kSumThreads, 0, stream, args, memory);
    if (!status) return status;
  }
  return launch(long_kernel, args.rows, Team<kWarpsPerRow>::kThreads, bytes, stream, args, memory,
                plan.split);
}

}  // namespace edlm::cuda
