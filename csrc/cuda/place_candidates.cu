// place_candidates on CUDA: launch.
#include "place_candidates.cuh"

namespace edlm::cuda {

Status place_candidates(const PlaceCandidatesArgs& args, void* stream) {
  const int64_t blocks = args.scored * args.candidates + args.sequences - args.scored;
  return launch(place_candidates_kernel, blocks, kPlaceThreads, kBlockSumBytes<kPlaceThreads>,
                stream, args);
}

}  // namespace edlm::cuda
