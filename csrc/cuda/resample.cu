// resample on CUDA: launch.
#include "resample.cuh"

namespace edlm::cuda {

Status resample(const ResampleArgs& args, void* stream) {
  return launch(resample_kernel, ceil_div(args.batch * kLanes, kResampleThreads), kResampleThreads,
                0, stream, args);
}

}  // namespace edlm::cuda
