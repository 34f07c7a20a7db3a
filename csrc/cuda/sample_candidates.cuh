// sample_candidates on CUDA: one read of the row, then K walks down its sums.
#pragma once

#include "cuts.cuh"
#include "edlm/sample_candidates.h"
#include "row_draw.cuh"

namespace edlm::cuda {

// One thread's work.
template <class Row>
EDLM_DEVICE void write_statistics(const Row& row, const RowTotal& total, float* to) {
  const bool good = total.sum > 0;
  const double entropy = total.log_z - total.moment / total.sum;
  to[0] = good ? float(entropy > 0 ? entropy : 0.0) : kNaN;
  to[1] = good ? log_prob(row, total.reference, total) : kNaN;
  to[2] = good ? log_prob(row, total.second, total) : kNaN;
}

// `kSplit`: sum_rows_kernel has read the row, into `workspace`.
template <class T, int kWarps, bool kCut, class Sums, bool kSplit>
EDLM_KERNEL(Team<kWarps>::kThreads, kCut ? 1 : kBlocks<T>)
sample_candidates_kernel(SampleCandidatesArgs args, double* workspace) {
  const int64_t r = Team<kWarps>::row();
  if (r >= args.rows) return;
  const double u = first_uniform<kWarps>(args, r);

  Row<T, kCut> row = row_of<T, kCut>(args, r);
  const Sums sums = team_sums<Sums, kWarps, kSplit>(row.vocab, workspace);
  if constexpr (kSplit) {
    wait_for_previous_kernel();
  } else if constexpr (kCut) {
    read_row<kWarps>(row, sums);
  } else {
    read_long_row<kWarps>(row, sums);
  }
  RowTotal total = row_total<kWarps>(row, sums);
  if constexpr (kCut) {
    const int used = sums_size(row.vocab) + (kSplit ? 0 : read_size<Sums>(row.vocab));
    cut_row<kWarps>(row, sums, total, args, bins_at(dynamic_shared() + used));
  }

  draw_candidates<kWarps>(args, r, row, sums, total, u);
  if constexpr (Sums::kStatistics) {
    if (Team<kWarps>::warp() == 0 && lane() == 0) {
      write_statistics(row, total, args.statistics + 3 * r);
    }
  }
}

}  // namespace edlm::cuda
