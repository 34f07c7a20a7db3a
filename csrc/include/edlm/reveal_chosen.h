/// @file
/// reveal_chosen: one candidate of each sequence by its energy, and its tokens at the positions
/// that are revealed now.
#pragma once

#include <stdint.h>

#include "edlm/status.h"

typedef struct edlm_reveal_chosen_args {
  const float* energy;     ///< [sequences, candidates]; log-weights are -energy / temperature
  float temperature;       ///< in [1e-30, 1e30]
  const int64_t* keys;     ///< [sequences]: as in resample
  const int64_t* x0;       ///< [sequences, candidates, length]
  const int64_t* places;   ///< [reveals]: flat in [sequences, length], those of a sequence together
  const int64_t* starts;   ///< [sequences + 1]: sequence i has reveals starts[i] - starts[0] and on
  const int64_t* rows;     ///< [sequences]: their places in the batch
  const int64_t* columns;  ///< [sequences]: their columns in ess and log_z
  int64_t sequences, candidates, length, width;
  int64_t* choice;  ///< [sequences], written
  int64_t* canvas;  ///< [batch, length], written at the places
  float* ess;       ///< [batch, width], written at (row, column), as resample does
  float* log_z;     ///< [batch, width], written at (row, column): resample's log_mean_weight
  int64_t* failed;  ///< [batch], set to 1 where the weights are bad
#ifdef __cplusplus
  EDLM_HD int64_t begin(int64_t i) const { return starts[i] - starts[0]; }
  EDLM_HD int64_t end(int64_t i) const { return starts[i + 1] - starts[0]; }
#endif
} edlm_reveal_chosen_args;

EDLM_C_BEGIN
/// Sequences `begin` to `end` (not included).
EDLM_API edlm_status edlm_cpu_reveal_chosen(const edlm_reveal_chosen_args* args, int64_t begin,
                                            int64_t end) EDLM_NOEXCEPT;
/// Bad weights choose -1, reveal candidate 0, and have ess and log_z NaN.
EDLM_API edlm_status edlm_cuda_reveal_chosen(const edlm_reveal_chosen_args* args,
                                             void* stream) EDLM_NOEXCEPT;
EDLM_C_END

#ifdef __cplusplus
namespace edlm {

using RevealChosenArgs = edlm_reveal_chosen_args;

namespace cpu {
EDLM_API Status reveal_chosen(const RevealChosenArgs& args, int64_t begin, int64_t end);
}
namespace cuda {
EDLM_API Status reveal_chosen(const RevealChosenArgs& args, void* stream);
}

}  // namespace edlm
#endif
