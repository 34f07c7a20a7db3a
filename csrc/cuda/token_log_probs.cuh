// token_log_probs on CUDA: one read of the row, and its target once more.
#pragma once

#include "edlm/token_log_probs.h"
#include "row_pass.cuh"

namespace edlm::cuda {

// Sums go to `workspace`, or to shared memory where it is null; `summed` says that they are there.
template <class T, int kWarps>
EDLM_KERNEL(Team<kWarps>::kThreads, kBlocks<T>)
token_log_probs_kernel(TokenLogProbsArgs args, double* workspace, bool summed) {
  const int64_t r = Team<kWarps>::row();
  if (r >= args.rows) return;
  const Row<T> row = row_of<T>(args, r);
  const RowSums sums = team_sums<kWarps>(args.vocab, false, workspace);
  if (!summed) sum_row<kWarps>(row, sums);
  if (Team<kWarps>::warp() != 0) return;
  const RowTotal total = row_total(row, sums);
  if (lane() != 0) return;
  const int64_t target = args.targets[r];
  const bool good = total.sum > 0 && target >= 0 && target < args.vocab;
  args.log_probs[r] = !good ? kNaN
                      : target == args.forbidden_id
                          ? -kInf
                          : log_prob(row, row.logit(target), total.reference, log(total.sum));
}

}  // namespace edlm::cuda
