// sample_weights on CUDA: one read of the row, then K walks down its sums.
#pragma once

#include "weight_row.cuh"

namespace edlm::cuda {

// `kSplit`: sum_rows_kernel has read the row, into `workspace`.
template <class T, int kWarps, bool kSplit>
EDLM_KERNEL(Team<kWarps>::kThreads, kBlocks<T>)
sample_weights_kernel(SampleWeightsArgs args, double* workspace) {
  const int64_t r = Team<kWarps>::row();
  if (r >= args.rows) return;
  const double u = first_uniform<kWarps>(args, r);

  const WeightRow<T> row = RowOf<T, SampleWeightsArgs>::at(args, r);
  const RowSums sums = team_sums<RowSums, kWarps, kSplit>(row.vocab, workspace);
  if constexpr (kSplit) {
    wait_for_previous_kernel();
  } else {
    read_row<kWarps>(row, sums);
  }
  RowTotal total = row_total<kWarps>(row, sums);
  if (!(total.sum <= kMaxWeights)) total.sum = kNaN;
  draw_candidates<kWarps>(args, r, row, sums, total, u);
}

}  // namespace edlm::cuda
