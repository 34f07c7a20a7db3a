// resample on the CPU, in fp64: K is small and a weight may be a sum over a thousand tokens.
#include "edlm/resample.h"

#include <cmath>
#include <limits>
#include <vector>

#include "edlm/row_sampling.h"

namespace edlm::cpu {

Status resample(const ResampleArgs& args, int64_t begin, int64_t end) {
  constexpr float kInf = std::numeric_limits<float>::infinity();
  const int64_t candidates = args.candidates;
  std::vector<double> weights(candidates);
  for (int64_t b = begin; b < end; ++b) {
    const float* log_weights = args.log_weights + b * candidates;
    float max = -kInf;
    for (int64_t k = 0; k < candidates; ++k) {
      if (!(log_weights[k] < kInf)) return {Code::kNotANumber, b};
      max = log_weights[k] > max ? log_weights[k] : max;
    }
    if (max == -kInf) return {Code::kNothingLeft, b};
    double sum = 0, sum_squares = 0;
    for (int64_t k = 0; k < candidates; ++k) {
      weights[k] = std::exp(double(log_weights[k]) - double(max));
      sum += weights[k];
      sum_squares += weights[k] * weights[k];
    }
    args.choice[b] = pick(weights.data(), candidates, sum, resample_uniform(args.keys[b])).index;
    args.ess[b] = float(sum * sum / sum_squares);
    args.log_mean_weight[b] = float(double(max) + std::log(sum / double(candidates)));
  }
  return {};
}

}  // namespace edlm::cpu
