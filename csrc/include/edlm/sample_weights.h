/// @file
/// sample_weights: K independent draws per row of non-negative weights from one read, with their
/// log-probabilities.
#pragma once

#include <stdint.h>

#include "edlm/dtype.h"
#include "edlm/status.h"

typedef struct edlm_sample_weights_args {
  const void* weights;  ///< [rows, vocab], `row_stride` elements from row to row; -0 is 0
  edlm_dtype dtype;
  int64_t rows, vocab, row_stride;
  const int64_t* keys;     ///< [rows]; candidate j of a row uses words (key, j), for any K
  int64_t num_candidates;  ///< K >= 1
  int64_t* tokens;         ///< [rows, K], written
  float* log_q;            ///< [rows, K], written: log(weight / sum of the row's weights), <= 0
} edlm_sample_weights_args;

EDLM_C_BEGIN
/// Rows `begin` to `end` (not included).
EDLM_API edlm_status edlm_cpu_sample_weights(const edlm_sample_weights_args* args, int64_t begin,
                                             int64_t end) EDLM_NOEXCEPT;
/// Bytes of device memory that the op wants to work in, aligned to 8; may be 0.
EDLM_API int64_t edlm_cuda_sample_weights_workspace(const edlm_sample_weights_args* args)
    EDLM_NOEXCEPT;
/// A bad row gets tokens -1 and log_q NaN.
EDLM_API edlm_status edlm_cuda_sample_weights(const edlm_sample_weights_args* args, void* workspace,
                                              void* stream) EDLM_NOEXCEPT;
EDLM_C_END

#ifdef __cplusplus
#include "edlm/sample_candidates.h"

namespace edlm {

using SampleWeightsArgs = edlm_sample_weights_args;

/// A row's weights may add up to this, the largest float, so that no part of the sum overflows.
inline constexpr double kMaxWeights = 3.4028234663852886e38;

namespace cpu {
EDLM_API Status sample_weights(const SampleWeightsArgs& args, int64_t begin, int64_t end);
}
namespace cuda {
EDLM_API int64_t sample_weights_workspace(const SampleWeightsArgs& args);
EDLM_API Status sample_weights(const SampleWeightsArgs& args, void* workspace, void* stream);
}  // namespace cuda

}  // namespace edlm
#endif
