// reveal_chosen on CUDA: launch.
#include "reveal_chosen.cuh"

namespace edlm::cuda {

Status reveal_chosen(const RevealChosenArgs& args, void* stream) {
  return launch(reveal_chosen_kernel, args.sequences, kRevealThreads, 0, stream, args);
}

}  // namespace edlm::cuda
