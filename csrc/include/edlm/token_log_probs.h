/// @file
/// token_log_probs: log-softmax of each row at one target, never materialised.
#pragma once

#include <stdint.h>

#include "edlm/dtype.h"
#include "edlm/status.h"

typedef struct edlm_token_log_probs_args {
  const void* logits;  ///< [rows, vocab], `row_stride` elements from row to row
  edlm_dtype dtype;
  int64_t rows, vocab, row_stride;
  const int64_t* targets;  ///< [rows], in [0, vocab)
  int64_t forbidden_id;    ///< not part of the normalisation, itself scored -inf; -1 for none
  float temperature;       ///< in [1e-30, 1e30]
  float* log_probs;        ///< [rows], written, <= 0
} edlm_token_log_probs_args;

EDLM_C_BEGIN
/// Rows `begin` to `end` (not included).
EDLM_API edlm_status edlm_cpu_token_log_probs(const edlm_token_log_probs_args* args, int64_t begin,
                                              int64_t end) EDLM_NOEXCEPT;
/// Bytes of device memory that the op wants to work in, aligned to 8; may be 0.
EDLM_API int64_t edlm_cuda_token_log_probs_workspace(const edlm_token_log_probs_args* args)
    EDLM_NOEXCEPT;
/// A bad row, and one whose target is outside the vocabulary, gets NaN.
EDLM_API edlm_status edlm_cuda_token_log_probs(const edlm_token_log_probs_args* args,
                                               void* workspace, void* stream) EDLM_NOEXCEPT;
EDLM_C_END

#ifdef __cplusplus
namespace edlm {

using TokenLogProbsArgs = edlm_token_log_probs_args;

namespace cpu {
EDLM_API Status token_log_probs(const TokenLogProbsArgs& args, int64_t begin, int64_t end);
}
namespace cuda {
EDLM_API int64_t token_log_probs_workspace(const TokenLogProbsArgs& args);
EDLM_API Status token_log_probs(const TokenLogProbsArgs& args, void* workspace, void* stream);
}  // namespace cuda

}  // namespace edlm
#endif
