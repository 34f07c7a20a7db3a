// reveal_steps on the CPU.
#include "edlm/reveal_steps.h"

namespace edlm::cpu {

Status reveal_steps(const RevealStepsArgs& args, int64_t begin, int64_t end) {
  for (int64_t b = begin; b < end; ++b) {
    for (int64_t l = 0; l < args.length; ++l) {
      const double u = reveal_uniform(args.keys[b], l);
      args.steps[b * args.length + l] = reveal_step(u, args.mask_probs, args.num_steps);
    }
  }
  return {};
}

}  // namespace edlm::cpu
