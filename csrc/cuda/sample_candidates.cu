// sample_candidates on CUDA: launch.
#include "row_launch.cuh"
#include "sample_candidates.cuh"

namespace edlm::cuda {
namespace {

RowPlan plan_of(const SampleCandidatesArgs& args) {
  return row_plan(args.rows, args.vocab, /*cells=*/true, /*one_pass=*/args.top_p >= 1);
}

}  // namespace

int64_t sample_candidates_workspace(const SampleCandidatesArgs& args) {
  return plan_of(args).workspace * int64_t(sizeof(double));
}

Status sample_candidates(const SampleCandidatesArgs& args, void* workspace, void* stream) {
  return with_dtype(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    return launch_rows<T>(sample_candidates_kernel<T, 1>, sample_candidates_kernel<T, kWarpsPerRow>,
                          args, plan_of(args), /*cells=*/true, workspace, stream);
  });
}

}  // namespace edlm::cuda
