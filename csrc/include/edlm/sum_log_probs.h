/// @file
/// sum_log_probs: the log-probabilities of each sequence's tokens, summed so that no order matters.
#pragma once

#include <stdint.h>

#include "edlm/status.h"

typedef struct edlm_sum_log_probs_args {
  const float* log_probs;  ///< [count]
  const int64_t* starts;   ///< [sequences + 1]: where each begins; null for equal parts
  int64_t count, sequences;
  double* sums;  ///< [sequences], written
#ifdef __cplusplus
  EDLM_HD int64_t begin(int64_t i) const { return starts ? starts[i] : i * (count / sequences); }
  EDLM_HD int64_t end(int64_t i) const { return begin(i + 1); }
#endif
} edlm_sum_log_probs_args;

EDLM_C_BEGIN
/// Sequences `begin` to `end` (not included).
EDLM_API edlm_status edlm_cpu_sum_log_probs(const edlm_sum_log_probs_args* args, int64_t begin,
                                            int64_t end) EDLM_NOEXCEPT;
EDLM_API edlm_status edlm_cuda_sum_log_probs(const edlm_sum_log_probs_args* args,
                                             void* stream) EDLM_NOEXCEPT;
EDLM_C_END

#ifdef __cplusplus
#include <cmath>

namespace edlm {

using SumLogProbsArgs = edlm_sum_log_probs_args;

/// Rounded to multiples of 2^-30, log-probabilities add without rounding up to 2^23 nats: a
/// sequence's score does not depend on its batch, on threads or on the kernel.
EDLM_HD double on_grid(float log_prob) {
  return rint(double(log_prob) * 1073741824.0) * (1.0 / 1073741824.0);
}

namespace cpu {
EDLM_API Status sum_log_probs(const SumLogProbsArgs& args, int64_t begin, int64_t end);
}
namespace cuda {
EDLM_API Status sum_log_probs(const SumLogProbsArgs& args, void* stream);
}

}  // namespace edlm
#endif
