// stream_keys on CUDA: launch.
#include "edlm/row_sampling.h"
#include "stream_keys.cuh"

namespace edlm::cuda {

Status stream_keys(const StreamKeysArgs& args, void* stream) {
  return launch(stream_keys_kernel, ceil_div(args.count, kStreamKeysThreads), kStreamKeysThreads, 0,
                stream, args);
}

}  // namespace edlm::cuda
