/// @file
/// resample: one candidate per sequence by importance weight, with the diagnostics of the weights.
#pragma once

#include <stdint.h>

#include "edlm/status.h"

typedef struct edlm_resample_args {
  const float* log_weights;  ///< [batch, candidates]; -inf is weight 0
  int64_t batch, candidates;
  const int64_t* keys;     ///< [batch]
  int64_t* choice;         ///< [batch], written: in [0, candidates)
  float* ess;              ///< [batch], written: (sum w)^2 / sum w^2, in [1, candidates]
  float* log_mean_weight;  ///< [batch], written: log of the mean weight, Theorem 1's log Z estimate
} edlm_resample_args;

EDLM_C_BEGIN
/// Sequences `begin` to `end` (not included).
EDLM_API edlm_status edlm_cpu_resample(const edlm_resample_args* args, int64_t begin,
                                       int64_t end) EDLM_NOEXCEPT;
/// A bad row gets choice -1, ess and log_mean_weight NaN.
EDLM_API edlm_status edlm_cuda_resample(const edlm_resample_args* args, void* stream) EDLM_NOEXCEPT;
EDLM_C_END

#ifdef __cplusplus
#include "edlm/philox.h"

namespace edlm {

using ResampleArgs = edlm_resample_args;

/// The uniform that decides a choice.
EDLM_HD double resample_uniform(int64_t key) {
  return uniform(random_bits(uint64_t(key), 0, 0, Purpose::kResample));
}

namespace cpu {
EDLM_API Status resample(const ResampleArgs& args, int64_t begin, int64_t end);
}
namespace cuda {
EDLM_API Status resample(const ResampleArgs& args, void* stream);
}

}  // namespace edlm
#endif
