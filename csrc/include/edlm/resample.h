// resample: one candidate per sequence by importance weight, with the diagnostics of the weights.
#pragma once

#include <cstdint>

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

namespace cpu {
Status resample(const ResampleArgs& args, int64_t begin, int64_t end);
}

}  // namespace edlm
