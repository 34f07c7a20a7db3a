/// @file
/// reveal_steps: the step at which the ancestral process reveals each position.
#pragma once

#include <stdint.h>

#include "edlm/status.h"

typedef struct edlm_reveal_steps_args {
  const int64_t* keys;  ///< [batch]
  int64_t batch, length, num_steps;
  const double* mask_probs;  ///< [num_steps + 1], not increasing: mask_prob(t_0) to mask_prob(t_N)
  int64_t* steps;            ///< [batch, length], written: 1..N, or N + 1 for what is left at t_N
} edlm_reveal_steps_args;

EDLM_C_BEGIN
/// Sequences `begin` to `end` (not included).
EDLM_API edlm_status edlm_cpu_reveal_steps(const edlm_reveal_steps_args* args, int64_t begin,
                                           int64_t end) EDLM_NOEXCEPT;
EDLM_API edlm_status edlm_cuda_reveal_steps(const edlm_reveal_steps_args* args,
                                            void* stream) EDLM_NOEXCEPT;
EDLM_C_END

#ifdef __cplusplus
#include "edlm/stream_keys.h"

namespace edlm {

using RevealStepsArgs = edlm_reveal_steps_args;

/// The uniform that decides when a position is revealed.
EDLM_HD double reveal_uniform(int64_t key, int64_t position) {
  return uniform(fold(uint64_t(key), position, 0));
}

/// The first i with mask_probs[i] <= u, at least 1; num_steps + 1 if there is none.
EDLM_HD int64_t reveal_step(double u, const double* mask_probs, int64_t num_steps) {
  int64_t low = 1, high = num_steps + 1;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (mask_probs[middle] <= u) {
      high = middle;
    } else {
      low = middle + 1;
    }
  }
  return low;
}

namespace cpu {
EDLM_API Status reveal_steps(const RevealStepsArgs& args, int64_t begin, int64_t end);
}
namespace cuda {
EDLM_API Status reveal_steps(const RevealStepsArgs& args, void* stream);
}

}  // namespace edlm
#endif
