// residual_draw on CUDA: launch.
#include "residual_draw.cuh"
#include "row_launch.cuh"

namespace edlm::cuda {
namespace {

RowPlan plan_of(const ResidualDrawArgs& args) {
  return row_plan(args.p.dtype, args.p.rows, args.p.vocab, /*more=*/0, args.q.vocab);
}

}  // namespace

int64_t residual_draw_workspace(const ResidualDrawArgs& args) {
  return plan_of(args).workspace * int64_t(sizeof(double));
}

Status residual_draw(const ResidualDrawArgs& args, void* workspace, void* stream) {
  return with_dtype(args.p.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    constexpr RowKernels<ResidualDrawArgs> kKernels = {
        residual_draw_kernel<T, 1, false>, residual_draw_kernel<T, kWarpsPerRow, false>,
        residual_draw_kernel<T, kWarpsPerRow, true>, Team<kWarpsPerRow>::kThreads};
    const RowPlan plan = plan_of(args);
    double* const memory = static_cast<double*>(workspace);
    if (plan.split) {
      const Status p = sum_rows<T>(args.p, memory, stream);
      if (!p) return p;
      double* const after_p = memory + args.p.rows * read_size(int(args.p.vocab));
      const Status q = sum_rows<T>(args.q, after_p, stream);
      if (!q) return q;
    }
    return launch_op(kKernels, args, args.p.rows, plan, memory, stream);
  });
}

}  // namespace edlm::cuda
