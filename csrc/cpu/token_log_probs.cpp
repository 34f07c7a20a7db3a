// token_log_probs on the CPU: one vectorised read of the row.
#include "edlm/token_log_probs.h"

#include <algorithm>
#include <cmath>
#include <limits>

#include "row_pass.h"

namespace edlm::cpu {

Status token_log_probs(const TokenLogProbsArgs& args, int64_t begin, int64_t end) {
  if (args.vocab <= kCell) return row_pass().short_rows.token_log_probs(args, begin, end);
  const float inv_temperature = 1.0f / args.temperature;
  RowScratch scratch(args.vocab);
  for (int64_t r = begin; r < end; ++r) {
    const int64_t target = args.targets[r];
    if (target < 0 || target >= args.vocab) return {Code::kBadTarget, r, 1};
    const Row row = {row_at(args.logits, args.dtype, r, args.row_stride), args.dtype, args.vocab,
                     args.forbidden_id, inv_temperature};
    row_pass().sum_chunks(row, scratch.sums(args.vocab));
    const RowTotal total = scratch.total(inv_temperature);
    if (std::isnan(total.sum)) return {Code::kNotANumber, r};
    if (!(total.sum > 0)) return {Code::kNothingLeft, r};
    const double gap = double(logit_at(row, target)) - double(total.reference);
    args.log_probs[r] = target == args.forbidden_id
                            ? -std::numeric_limits<float>::infinity()
                            : float(std::min(0.0, gap * double(inv_temperature) - total.log_z));
  }
  return {};
}

}  // namespace edlm::cpu
