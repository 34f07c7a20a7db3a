// The entry points of C on CUDA.
#include "guard.h"

namespace {

template <class Args, class Op>
edlm_status launch(const Args* args, const Op& op) noexcept {
  if (!args) return edlm::c::wrong(-1);
  if (const edlm_status status = edlm::c::check(*args); !status) return status;
  return edlm::c::without_exceptions([&] { return op(*args); });
}

}  // namespace

#define EDLM_OP(name)                                                                      \
  edlm_status edlm_cuda_##name(const edlm_##name##_args* args, void* stream) noexcept {    \
    return launch(args, [=](const auto& args) { return edlm::cuda::name(args, stream); }); \
  }
EDLM_OP(place_candidates)
EDLM_OP(resample)
EDLM_OP(reveal_chosen)
EDLM_OP(reveal_steps)
EDLM_OP(stream_keys)
EDLM_OP(sum_log_probs)

#define EDLM_OP_WITH_WORKSPACE(name)                                                            \
  int64_t edlm_cuda_##name##_workspace(const edlm_##name##_args* args) noexcept {               \
    return args && edlm::c::check(*args) ? edlm::cuda::name##_workspace(*args) : 0;             \
  }                                                                                             \
  edlm_status edlm_cuda_##name(const edlm_##name##_args* args, void* workspace,                 \
                               void* stream) noexcept {                                         \
    return launch(args,                                                                         \
                  [=](const auto& args) { return edlm::cuda::name(args, workspace, stream); }); \
  }
EDLM_OP_WITH_WORKSPACE(residual_draw)
EDLM_OP_WITH_WORKSPACE(sample_candidates)
EDLM_OP_WITH_WORKSPACE(sample_weights)
EDLM_OP_WITH_WORKSPACE(token_log_probs)
