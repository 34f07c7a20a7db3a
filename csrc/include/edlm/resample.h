// resample: one candidate per sequence by importance weight, with the diagnostics of the weights.
#pragma once

#include <cstdint>

#include "edlm/philox.h"
#include "edlm/status.h"

namespace edlm {

struct ResampleArgs {
  const float* log_weights;  // [batch, candidates]; -inf is weight 0
  int64_t batch, candidates;
  const int64_t* keys;     // [batch]
  int64_t* choice;         // [batch], written: in [0, candidates)
  float* ess;              // [batch], written: (sum w)^2 / sum w^2, in [1, candidates]
  float* log_mean_weight;  // [batch], written: log of the mean weight, Theorem 1's log Z estimate
};

// The uniform that decides a choice.
EDLM_HD double resample_uniform(int64_t key) {
  return uniform(random_bits(uint64_t(key), 0, 0, Purpose::kResample));
}

namespace cpu {
Status resample(const ResampleArgs& args, int64_t begin, int64_t end);
}
namespace cuda {
// A bad row gets choice -1, ess and log_mean_weight NaN.
Status resample(const ResampleArgs& args, void* stream);
}  // namespace cuda

}  // namespace edlm
