// sample_weights on the CPU: one vectorised read of the row, then K walks down its sums.
#include "edlm/sample_weights.h"

#include <algorithm>
#include <cmath>

#include "row_sampler.h"

namespace edlm::cpu {

Status sample_weights(const SampleWeightsArgs& args, int64_t begin, int64_t end) {
  RowScratch scratch(args.vocab);
  for (int64_t r = begin; r < end; ++r) {
    const Row row = {row_at(args.weights, args.dtype, r, args.row_stride), args.dtype, args.vocab,
                     /*forbidden_id=*/-1, /*inv_temperature=*/1};
    row_pass().sum_weights(row, scratch.sums(row.vocab));
    const RowTotal total = scratch.total(row.inv_temperature);
    if (!(total.sum <= kMaxWeights)) return {Code::kBadWeight, r};
    if (!(total.sum > 0)) return {Code::kNoWeight, r};
    RowSampler sampler(row, scratch, row_pass().weight_cell);
    for (int64_t j = 0; j < args.num_candidates; ++j) {
      const int64_t token = sampler.draw(candidate_uniform(args.keys[r], j));
      const double log_q = std::log(double(logit_at(row, token))) - total.log_z;
      args.tokens[r * args.num_candidates + j] = token;
      args.log_q[r * args.num_candidates + j] = float(std::min(0.0, log_q));
    }
  }
  return {};
}

}  // namespace edlm::cpu
