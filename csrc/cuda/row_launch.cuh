// How the rows of a matrix of logits are dealt to blocks, for every op that reads rows.
#pragma once

#include <utility>

#include "row_ring.cuh"

namespace edlm::cuda {

// Shorter rows are read by one warp each, eight to a block.
inline constexpr int64_t kShortRow = 4 * kWarpChunk;
// Longer ones by the eight warps of a block.
inline constexpr int kWarpsPerRow = 8;
// Cuts take four reads and more, one after the other, so such rows have more.
inline constexpr int kWarpsPerCut = 16;
// Blocks beyond whole waves that read less than this take longer each than all of them together:
// there the rows are cut at their chunks, unless the waves before are so many that it hardly shows.
inline constexpr int64_t kFewBytes = 16 << 20;
inline constexpr int64_t kManyWaves = 2;
// Lets the second kernel of cut rows start while the first runs, on sm_90 and later. Off until a
// GPU has shown it right and faster.
inline constexpr bool kDependentLaunch = false;
// What every device gives a block without being asked.
inline constexpr int64_t kSharedBytes = 48 * 1024;

struct RowPlan {
  bool short_rows, split;
  int64_t shared;     // doubles of a block's shared memory
  int64_t workspace;  // doubles of device memory
};

// `more`: doubles of shared memory that a row wants besides its sums. Then it has a block, however
// short it is. `second`: the vocabulary of a row of other logits that is read beside each row; 0
// for none.
template <class Sums = RowSums>
RowPlan row_plan(DType dtype, int64_t rows, int64_t vocab, int64_t more, int64_t second = 0) {
  const int64_t read = read_size<Sums>(int(vocab)) + read_size<Sums>(int(second));
  const int64_t made = sums_size(int(vocab)) + (second ? sums_size(int(second)) : 0);
  const bool short_rows = vocab <= kShortRow && second <= kShortRow && more == 0;
  const bool fits = (read + made + more) * int64_t(sizeof(double)) <= kSharedBytes;
  const auto [blocks, ring] = with_dtype(dtype, [](auto type) {
    using T = typename decltype(type)::type;
    return std::pair(kBlocks<T>, kRingSize<T, kWarpsPerRow>);
  });
  const int64_t wave = int64_t(multiprocessors()) * blocks;
  const int64_t bytes = (vocab + second) * size_of(dtype);
  const bool few = rows < kManyWaves * wave && rows % wave * bytes < kFewBytes;
  const bool split = !short_rows && (few || !fits);
  const int64_t sums = (made + (split ? 0 : read)) * (short_rows ? Team<1>::kPerBlock : 1);
  const bool copies = kBulkCopies && !Sums::kStatistics;
  if (copies && !short_rows && !split && more == 0 && second == 0) {
    return {false, false, ring_offset(int(vocab)) + ring, 0};
  }
  return {short_rows, split, sums + more, split ? rows * read : 0};
}

// A kernel of (args, workspace): for short rows, for long ones, and for those that are split.
template <class Args>
using RowKernel = void (*)(Args, double*);
template <class Args>
struct RowKernels {
  RowKernel<Args> small, large, split;
  int threads;  // of the latter two
};

// Reads the rows that are split: one chunk to a warp, to `memory`.
template <class T, class Sums = RowSums, class Args>
Status sum_rows(const Args& args, double* memory, void* stream) {
  const int64_t warps = args.rows * chunks_of(int(args.vocab));
  return launch(sum_rows_kernel<T, Args, Sums>, ceil_div(warps * kLanes, kSumThreads), kSumThreads,
                0, stream, args, memory);
}

// The op itself, on `rows` rows, after sum_rows() where they are split.
template <class Args>
Status launch_op(const RowKernels<Args>& kernels, const Args& args, int64_t rows,
                 const RowPlan& plan, double* memory, void* stream) {
  const int64_t bytes = plan.shared * int64_t(sizeof(double));
  if (plan.short_rows) {
    return launch(kernels.small, ceil_div(rows, Team<1>::kPerBlock), Team<1>::kThreads, bytes,
                  stream, args, memory);
  }
  if (!plan.split) return launch(kernels.large, rows, kernels.threads, bytes, stream, args, memory);
  if (kDependentLaunch) {
    return launch_dependent(kernels.split, rows, kernels.threads, bytes, stream, args, memory);
  }
  return launch(kernels.split, rows, kernels.threads, bytes, stream, args, memory);
}

template <class T, class Sums = RowSums, class Args>
Status launch_rows(const RowKernels<Args>& kernels, const Args& args, const RowPlan& plan,
                   void* workspace, void* stream) {
  double* const memory = static_cast<double*>(workspace);
  if (plan.split) {
    const Status status = sum_rows<T, Sums>(args, memory, stream);
    if (!status) return status;
  }
  return launch_op(kernels, args, args.rows, plan, memory, stream);
}

}  // namespace edlm::cuda
