// sample_candidates on CUDA: one read of the row, then K walks down its sums.
#pragma once

#include "edlm/sample_candidates.h"
#include "nucleus.cuh"
#include "row_draw.cuh"

namespace edlm::cuda {

// `kSplit`: sum_rows_kernel has read the row, into `workspace`.
template <class T, int kWarps, bool kNucleus, bool kSplit>
EDLM_KERNEL(Team<kWarps>::kThreads, kNucleus ? 1 : kBlocks<T>)
sample_candidates_kernel(SampleCandidatesArgs args, double* workspace) {
  const int64_t r = Team<kWarps>::row();
  if (r >= args.rows) return;
  const double u = first_uniform<kWarps>(args, r);

  Row<T, kNucleus> row = row_of<T, kNucleus>(args, r);
  const RowSums sums = team_sums<kWarps, kSplit>(row.vocab, workspace);
  if constexpr (kSplit) {
    wait_for_previous_kernel();
  } else if constexpr (kNucleus) {
    read_row<kWarps>(row, sums);
  } else {
    read_long_row<kWarps>(row, sums);
  }
  RowTotal total = row_total<kWarps>(row, sums);
  if constexpr (kNucleus) {
    const int used = sums_size(row.vocab) + (kSplit ? 0 : read_size(row.vocab));
    row.floor = nucleus_floor<kWarps>(row, total, args.top_p, bins_at(dynamic_shared() + used));
    read_row<kWarps>(row, sums);
    total = row_total<kWarps>(row, sums);
  }

  draw_candidates<kWarps>(args, r, row, sums, total, u);
}

}  // namespace edlm::cuda
