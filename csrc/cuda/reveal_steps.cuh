// reveal_steps on CUDA: one thread per position.
#pragma once

#include "device.cuh"
#include "edlm/reveal_steps.h"

namespace edlm::cuda {

inline constexpr int kRevealStepsThreads = 128;

EDLM_KERNEL(kRevealStepsThreads) reveal_steps_kernel(RevealStepsArgs args) {
  const int64_t i = block_index() * kRevealStepsThreads + thread_index();
  if (i >= args.batch * args.length) return;
  const double u = reveal_uniform(args.keys[i / args.length], i % args.length);
  args.steps[i] = reveal_step(u, args.mask_probs, args.num_steps);
}

}  // namespace edlm::cuda
