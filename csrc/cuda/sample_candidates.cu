// sample_candidates on CUDA: launch.
#include "row_launch.cuh"
#include "sample_candidates.cuh"

namespace edlm::cuda {
namespace {

template <class Sums>
RowPlan plan_with(const SampleCandidatesArgs& args) {
  return row_plan<Sums>(args.dtype, args.rows, args.vocab, args.cut() ? kBinsSize : 0);
}
RowPlan plan_of(const SampleCandidatesArgs& args) {
  return args.statistics ? plan_with<RowStatistics>(args) : plan_with<RowSums>(args);
}

template <class T, class Sums>
Status launch_with(const SampleCandidatesArgs& args, void* workspace, void* stream) {
  constexpr int kWarps = kWarpsPerRow, kMore = kWarpsPerCut;
  using Kernels = RowKernels<SampleCandidatesArgs>;
  constexpr Kernels kWhole = {sample_candidates_kernel<T, 1, false, Sums, false>,
                              sample_candidates_kernel<T, kWarps, false, Sums, false>,
                              sample_candidates_kernel<T, kWarps, false, Sums, true>,
                              Team<kWarps>::kThreads};
  constexpr Kernels kCut = {nullptr, sample_candidates_kernel<T, kMore, true, Sums, false>,
                            sample_candidates_kernel<T, kMore, true, Sums, true>,
                            Team<kMore>::kThreads};
  return launch_rows<T, Sums>(args.cut() ? kCut : kWhole, args, plan_of(args), workspace, stream);
}

}  // namespace

int64_t sample_candidates_workspace(const SampleCandidatesArgs& args) {
  return plan_of(args).workspace * int64_t(sizeof(double));
}

Status sample_candidates(const SampleCandidatesArgs& args, void* workspace, void* stream) {
  return with_dtype(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return args.statistics ? launch_with<T, RowStatistics>(args, workspace, stream)
                           : launch_with<T, RowSums>(args, workspace, stream);
  });
}

}  // namespace edlm::cuda
