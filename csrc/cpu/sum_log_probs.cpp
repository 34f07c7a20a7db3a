// sum_log_probs on the CPU.
#include "edlm/sum_log_probs.h"

namespace edlm::cpu {

Status sum_log_probs(const SumLogProbsArgs& args, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    double sum = 0;
    for (int64_t r = args.begin(i); r < args.end(i); ++r) sum += on_grid(args.log_probs[r]);
    args.sums[i] = sum;
  }
  return {};
}

}  // namespace edlm::cpu
