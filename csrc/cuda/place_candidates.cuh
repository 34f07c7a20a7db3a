// place_candidates on CUDA: a block to each candidate of the scored sequences, and one to each
// other sequence.
#pragma once

#include "block_sum.cuh"
#include "edlm/place_candidates.h"

namespace edlm::cuda {

inline constexpr int kPlaceThreads = 256;

EDLM_DEVICE int64_t placed(const PlaceCandidatesArgs& args, int64_t i, int64_t token) {
  if (token >= 0) return token;
  args.failed[args.rows[i]] = 1;
  return 0;
}

EDLM_DEVICE void complete(const PlaceCandidatesArgs& args, int64_t i, int64_t k) {
  const int64_t* const xt = args.canvas + args.rows[i] * args.length;
  int64_t* const x0 = args.x0 + (i * args.candidates + k) * args.length;
  for (int64_t l = thread_index(); l < args.length; l += kPlaceThreads) {
    x0[l] = xt[l];
    if (k == 0) args.xt[i * args.length + l] = xt[l];
  }
  sync_block();  // the tokens come over the copy
  double sum = 0;
  for (int64_t r = args.begin(i) + thread_index(); r < args.end(i); r += kPlaceThreads) {
    const int64_t position = args.places[r] - i * args.length;
    x0[position] = placed(args, i, args.tokens[r * args.candidates + k]);
    if (position >= args.first_position) sum += on_grid(args.log_q[r * args.candidates + k]);
  }
  sum = block_sum<kPlaceThreads>(sum);
  if (thread_index() == 0) args.sums[i * args.candidates + k] = float(sum);
}

EDLM_KERNEL(kPlaceThreads) place_candidates_kernel(PlaceCandidatesArgs args) {
  const int64_t completions = args.scored * args.candidates;
  if (block_index() < completions) {
    // Fewer blocks than 2^31: a 64-bit division would be a call.
    const uint32_t block = uint32_t(block_index()), candidates = uint32_t(args.candidates);
    complete(args, block / candidates, block % candidates);
    return;
  }
  const int64_t i = args.scored + block_index() - completions;
  int64_t* const canvas = args.canvas + args.rows[i] * args.length;
  for (int64_t r = args.begin(i) + thread_index(); r < args.end(i); r += kPlaceThreads) {
    canvas[args.places[r] - i * args.length] = placed(args, i, args.tokens[r * args.candidates]);
  }
}

}  // namespace edlm::cuda
