// sample_candidates on CUDA: launch.
#include "row_launch.cuh"
#include "sample_candidates.cuh"

namespace edlm::cuda {
namespace {

RowPlan plan_of(const SampleCandidatesArgs& args) {
  return row_plan(args.rows, args.vocab, args.top_p < 1 ? kNucleusSize : 0);
}

}  // namespace

int64_t sample_candidates_workspace(const SampleCandidatesArgs& args) {
  return plan_of(args).workspace * int64_t(sizeof(double));
}

Status sample_candidates(const SampleCandidatesArgs& args, void* workspace, void* stream) {
  return with_dtype(args.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr RowKernel<SampleCandidatesArgs> kShort = sample_candidates_kernel<T, 1, false>,
                                              kLong =
                                                  sample_candidates_kernel<T, kWarpsPerRow, false>,
                                              kNucleus =
                                                  sample_candidates_kernel<T, kWarpsPerRow, true>;
    return launch_rows<T>(kShort, args.top_p < 1 ? kNucleus : kLong, args, plan_of(args), workspace,
                          stream);
  });
}

}  // namespace edlm::cuda
