// sample_candidates on the CPU: one vectorised read of the row, or of what its cuts leave, then K
// walks down its sums.
#include "edlm/sample_candidates.h"

#include <algorithm>
#include <cmath>

#include "cut_row.h"
#include "row_sampler.h"

namespace edlm::cpu {
Status sample_candidates(const SampleCandidatesArgs& args, int64_t begin, int64_t end) {
  const float inv_temperature = 1.0f / args.temperature;
  const bool cut = args.cut();
  const RowPass& pass = row_pass();
  if (args.vocab <= kCell && !cut) return pass.short_rows.sample_candidates(args, begin, end);
  const auto sum = args.statistics ? pass.sum_with_statistics : pass.sum;
  RowScratch scratch(args.vocab);
  CutRow kept(cut ? args.vocab : 0);
  for (int64_t r = begin; r < end; ++r) {
    Row row = {row_at(args.logits, args.dtype, r, args.row_stride), args.dtype, args.vocab,
               args.forbidden_id, inv_temperature};
    (cut ? pass.sum_chunks_with_maxima : sum)(row, scratch.sums(row.vocab));
    RowTotal total = scratch.total(inv_temperature);
    if (std::isnan(total.sum)) return {Code::kNotANumber, r};
    if (!(total.sum > 0)) return {Code::kNothingLeft, r};
    if (cut) {
      row = kept.cut(row, total, scratch.cell_max(), {args.top_k, args.top_p, args.min_p});
      sum(row, scratch.sums(row.vocab));
      total = scratch.total(inv_temperature);
    }
    RowSampler sampler(row, scratch, pass.cell);
    for (int64_t j = 0; j < args.num_candidates; ++j) {
      const int64_t token = sampler.draw(candidate_uniform(args.keys[r], j));
      const double gap = double(logit_at(row, token)) - double(total.reference);
      args.tokens[r * args.num_candidates + j] = cut ? kept.id(token) : token;
      args.log_q[r * args.num_candidates + j] =
          float(std::min(0.0, gap * double(inv_temperature) - total.log_z));
    }
    if (args.statistics) scratch.statistics(inv_temperature, total, args.statistics + 3 * r);
  }
  return {};
}

}  // namespace edlm::cpu
