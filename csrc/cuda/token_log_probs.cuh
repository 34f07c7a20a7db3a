// token_log_probs on CUDA: one read of the row, and its target once more.
#pragma once

#include "edlm/token_log_probs.h"
#include "row_ring.cuh"

namespace edlm::cuda {

// `kSplit`: sum_rows_kernel has read the row, into `workspace`.
template <class T, int kWarps, bool kSplit>
EDLM_KERNEL(Team<kWarps>::kThreads, kBlocks<T>)
token_log_probs_kernel(TokenLogProbsArgs args, double* workspace) {
  const int64_t r = Team<kWarps>::row();
  if (r >= args.rows) return;
  const Row<T> row = row_of<T>(args, r);
  const int64_t target = args.targets[r];
  const bool inside = target >= 0 && target < args.vocab;
  const float logit = inside ? row.logit(int(target)) : kNaN;
  const RowSums sums = team_sums<RowSums, kWarps, kSplit>(row.vocab, workspace);
  if constexpr (kSplit) {
    wait_for_previous_kernel();
  } else {
    read_long_row<kWarps>(row, sums);
  }
  add_cells<kWarps>(chunks_of(row.vocab), sums);
  Team<kWarps>::sync();
  if (Team<kWarps>::warp() != 0) return;
  const RowTotal total = add_chunks(row, sums);
  if (lane() != 0) return;
  args.log_probs[r] = !(inside && total.sum > 0)    ? kNaN
                      : target == args.forbidden_id ? -kInf
                                                    : log_prob(row, logit, total);
}

}  // namespace edlm::cuda
