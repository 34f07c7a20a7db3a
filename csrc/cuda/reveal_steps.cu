// reveal_steps on CUDA: launch.
#include "edlm/row_sampling.h"
#include "reveal_steps.cuh"

namespace edlm::cuda {

Status reveal_steps(const RevealStepsArgs& args, void* stream) {
  return launch(reveal_steps_kernel, ceil_div(args.batch * args.length, kRevealStepsThreads),
                kRevealStepsThreads, 0, stream, args);
}

}  // namespace edlm::cuda
