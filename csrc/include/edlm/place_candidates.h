/// @file
/// place_candidates: what was drawn, put where it belongs: into complete candidates for the energy,
/// or, in sequences that take no energy, into the tokens themselves.
#pragma once

#include <stdint.h>

#include "edlm/status.h"

typedef struct edlm_place_candidates_args {
  const int64_t*
      tokens;          ///< [draws, candidates]; -1, a row that could not be drawn from, becomes 0
  const float* log_q;  ///< [draws, candidates]
  const int64_t* places;  ///< [draws]: flat in [sequences, length], those of a sequence together
  const int64_t* starts;  ///< [sequences + 1]: sequence i has draws starts[i] - starts[0] and on
  const int64_t* rows;    ///< [sequences]: their places in the batch
  int64_t sequences, scored;  ///< the first `scored` sequences take the energy
  int64_t candidates, length;
  int64_t first_position;  ///< draws at positions before it do not count in `sums`
  int64_t* xt;             ///< [scored, length], written: what is on the canvas
  int64_t* x0;             ///< [scored, candidates, length], written: xt with the drawn tokens
  float* sums;             ///< [scored, candidates], written: log_q summed as by sum_log_probs
  int64_t* canvas;         ///< [batch, length], written where the other sequences drew: candidate 0
  int64_t* failed;         ///< [batch], set to 1 where a draw was -1
#ifdef __cplusplus
  EDLM_HD int64_t begin(int64_t i) const { return starts[i] - starts[0]; }
  EDLM_HD int64_t end(int64_t i) const { return starts[i + 1] - starts[0]; }
#endif
} edlm_place_candidates_args;

EDLM_C_BEGIN
/// Sequences `begin` to `end` (not included).
EDLM_API edlm_status edlm_cpu_place_candidates(const edlm_place_candidates_args* args,
                                               int64_t begin, int64_t end) EDLM_NOEXCEPT;
EDLM_API edlm_status edlm_cuda_place_candidates(const edlm_place_candidates_args* args,
                                                void* stream) EDLM_NOEXCEPT;
EDLM_C_END

#ifdef __cplusplus
#include "edlm/sum_log_probs.h"

namespace edlm {

using PlaceCandidatesArgs = edlm_place_candidates_args;

namespace cpu {
EDLM_API Status place_candidates(const PlaceCandidatesArgs& args, int64_t begin, int64_t end);
}
namespace cuda {
EDLM_API Status place_candidates(const PlaceCandidatesArgs& args, void* stream);
}

}  // namespace edlm
#endif
