// reveal_chosen on CUDA: a block to each sequence, whose warps all make the same choice.
#pragma once

#include "edlm/reveal_chosen.h"
#include "warp_resample.cuh"

namespace edlm::cuda {

inline constexpr int kRevealThreads = 128;

EDLM_KERNEL(kRevealThreads) reveal_chosen_kernel(RevealChosenArgs args) {
  const int64_t i = block_index(), row = args.rows[i];
  const float* const energy = args.energy + i * args.candidates;
  const Resampled chosen = warp_resample(args.candidates, args.keys[i],
                                         [&](int64_t k) { return -energy[k] / args.temperature; });
  const bool good = chosen.choice >= 0;
  if (thread_index() == 0) {
    args.choice[i] = chosen.choice;
    args.ess[row * args.width + args.columns[i]] = chosen.ess;
    args.log_z[row * args.width + args.columns[i]] = chosen.log_mean_weight;
    if (!good) args.failed[row] = 1;
  }
  const int64_t candidate = good ? chosen.choice : 0;
  const int64_t* const x0 = args.x0 + (i * args.candidates + candidate) * args.length;
  for (int64_t r = args.begin(i) + thread_index(); r < args.end(i); r += kRevealThreads) {
    const int64_t position = args.places[r] - i * args.length;
    args.canvas[row * args.length + position] = x0[position];
  }
}

}  // namespace edlm::cuda
