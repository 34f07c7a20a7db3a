// The choice of one candidate by a warp, in fp64 as on the CPU.
#pragma once

#include "block.cuh"
#include "edlm/resample.h"

namespace edlm::cuda {

struct Resampled {
  int64_t choice;  // -1 for bad weights, with the others NaN
  float ess, log_mean_weight;
};

// Every lane of the warp gets the result.
template <class LogWeight>
EDLM_DEVICE Resampled warp_resample(int64_t candidates, int64_t key, const LogWeight& log_weight) {
  float max = -kInf;
  bool number = true;
  for (int64_t k = lane(); k < candidates; k += kLanes) {
    number = number && log_weight(k) < kInf;
    max = max_of(max, log_weight(k));
  }
  max = warp_max(max);
  if (ballot(number) != ~0u || !(max > -kInf)) return {-1, kNaN, kNaN};
  const auto weight_of = [&](int64_t k) { return exp(double(log_weight(k)) - double(max)); };
  double sum = 0, sum_squares = 0;
  for (int64_t k = lane(); k < candidates; k += kLanes) {
    const double weight = weight_of(k);
    sum += weight;
    sum_squares += weight * weight;
  }
  sum = warp_sum(sum);
  sum_squares = warp_sum(sum_squares);
  return {warp_pick(candidates, sum, resample_uniform(key), weight_of).index,
          float(sum * sum / sum_squares), float(double(max) + log(sum / double(candidates)))};
}

}  // namespace edlm::cuda
