// sample_weights on CUDA: launch.
#include "row_launch.cuh"
#include "sample_weights.cuh"

namespace edlm::cuda {
namespace {

RowPlan plan_of(const SampleWeightsArgs& args) {
  return row_plan(args.dtype, args.rows, args.vocab, /*more=*/0);
}

}  // namespace

int64_t sample_weights_workspace(const SampleWeightsArgs& args) {
  return plan_of(args).workspace * int64_t(sizeof(double));
}

Status sample_weights(const SampleWeightsArgs& args, void* workspace, void* stream) {
  return with_dtype(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr RowKernels<SampleWeightsArgs> kKernels = {
        sample_weights_kernel<T, 1, false>, sample_weights_kernel<T, kWarpsPerRow, false>,
        sample_weights_kernel<T, kWarpsPerRow, true>, Team<kWarpsPerRow>::kThreads};
    return launch_rows<T>(kKernels, args, plan_of(args), workspace, stream);
  });
}

}  // namespace edlm::cuda
