// reveal_chosen on the CPU: resample, one sequence at a time, and a copy.
#include "edlm/reveal_chosen.h"

#include <vector>

#include "edlm/resample.h"

namespace edlm::cpu {

Status reveal_chosen(const RevealChosenArgs& args, int64_t begin, int64_t end) {
  std::vector<float> log_weights(args.candidates);
  for (int64_t i = begin; i < end; ++i) {
    for (int64_t k = 0; k < args.candidates; ++k) {
      log_weights[k] = -args.energy[i * args.candidates + k] / args.temperature;
    }
    const int64_t row = args.rows[i], diagnostics = row * args.width + args.columns[i];
    const ResampleArgs one = {.log_weights = log_weights.data(),
                              .batch = 1,
                              .candidates = args.candidates,
                              .keys = args.keys + i,
                              .choice = args.choice + i,
                              .ess = args.ess + diagnostics,
                              .log_mean_weight = args.log_z + diagnostics};
    const Status status = resample(one, 0, 1);
    if (!status) return {status.code, i};
    const int64_t* const x0 = args.x0 + (i * args.candidates + args.choice[i]) * args.length;
    for (int64_t r = args.begin(i); r < args.end(i); ++r) {
      const int64_t position = args.places[r] - i * args.length;
      args.canvas[row * args.length + position] = x0[position];
    }
  }
  return {};
}

}  // namespace edlm::cpu
