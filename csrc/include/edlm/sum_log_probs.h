// sum_log_probs: the log-probabilities of each sequence's tokens, summed so that no order matters.
#pragma once

#include <cmath>
#include <cstdint>

#include "edlm/config.h"
#include "edlm/status.h"

namespace edlm {

// Rounded to multiples of 2^-30, log-probabilities add without rounding up to 2^23 nats: a
// sequence's score does not depend on its batch, on threads or on the kernel.
EDLM_HD double on_grid(float log_prob) {
  return rint(double(log_prob) * 1073741824.0) * (1.0 / 1073741824.0);
}

struct SumLogProbsArgs {
  const float* log_probs;  // [count]
  const int64_t* starts;   // [sequences + 1]: where each sequence begins; null for equal parts
  int64_t count, sequences;
  double* sums;  // [sequences], written

  EDLM_HD int64_t begin(int64_t i) const { return starts ? starts[i] : i * (count / sequences); }
  EDLM_HD int64_t end(int64_t i) const { return begin(i + 1); }
};

namespace cpu {
Status sum_log_probs(const SumLogProbsArgs& args, int64_t begin, int64_t end);
}
namespace cuda {
Status sum_log_probs(const SumLogProbsArgs& args, void* stream);
}

}  // namespace edlm
