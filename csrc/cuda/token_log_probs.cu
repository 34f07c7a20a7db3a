// token_log_probs on CUDA: launch.
#include "row_launch.cuh"
#include "token_log_probs.cuh"

namespace edlm::cuda {
namespace {

RowPlan plan_of(const TokenLogProbsArgs& args) {
  return row_plan(args.dtype, args.rows, args.vocab, /*more=*/0);
}

}  // namespace

int64_t token_log_probs_workspace(const TokenLogProbsArgs& args) {
  return plan_of(args).workspace * int64_t(sizeof(double));
}

Status token_log_probs(const TokenLogProbsArgs& args, void* workspace, void* stream) {
  return with_dtype(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr RowKernels<TokenLogProbsArgs> kKernels = {
        token_log_probs_kernel<T, 1, false>, token_log_probs_kernel<T, kWarpsPerRow, false>,
        token_log_probs_kernel<T, kWarpsPerRow, true>, Team<kWarpsPerRow>::kThreads};
    return launch_rows<T>(kKernels, args, plan_of(args), workspace, stream);
  });
}

}  // namespace edlm::cuda
