// sample_candidates on CUDA: launch.
#include "row_launch.cuh"
#include "sample_candidates.cuh"

namespace edlm::cuda {
namespace {

RowPlan plan_of(const SampleCandidatesArgs& args) {
  return row_plan(args.dtype, args.rows, args.vocab, args.top_p < 1 ? kNucleusSize : 0);
}

}  // namespace

int64_t sample_candidates_workspace(const SampleCandidatesArgs& args) {
  return plan_of(args).workspace * int64_t(sizeof(double));
}

Status sample_candidates(const SampleCandidatesArgs& args, void* workspace, void* stream) {
  return with_dtype(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr int kWarps = kWarpsPerRow, kMore = kWarpsPerNucleus;
    using Kernels = RowKernels<SampleCandidatesArgs>;
    constexpr Kernels kWhole = {sample_candidates_kernel<T, 1, false, false>,
                                sample_candidates_kernel<T, kWarps, false, false>,
                                sample_candidates_kernel<T, kWarps, false, true>,
                                Team<kWarps>::kThreads};
    constexpr Kernels kNucleus = {nullptr, sample_candidates_kernel<T, kMore, true, false>,
                                  sample_candidates_kernel<T, kMore, true, true>,
                                  Team<kMore>::kThreads};
    return launch_rows<T>(args.top_p < 1 ? kNucleus : kWhole, args, plan_of(args), workspace,
                          stream);
  });
}

}  // namespace edlm::cuda
