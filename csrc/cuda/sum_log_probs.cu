// sum_log_probs on CUDA: launch.
#include "sum_log_probs.cuh"

namespace edlm::cuda {

Status sum_log_probs(const SumLogProbsArgs& args, void* stream) {
  return launch(sum_log_probs_kernel, args.sequences, kSumThreads, kBlockSumBytes<kSumThreads>,
                stream, args);
}

}  // namespace edlm::cuda
