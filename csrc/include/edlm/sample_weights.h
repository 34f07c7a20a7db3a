// sample_weights: K independent draws per row of non-negative weights from one read, with their
// log-probabilities.
#pragma once

#include <cstdint>

#include "edlm/dtype.h"
#include "edlm/sample_candidates.h"
#include "edlm/status.h"

namespace edlm {

struct SampleWeightsArgs {
  const void* weights;  // [rows, vocab], `row_stride` elements from row to row; -0 is 0
  DType dtype;
  int64_t rows, vocab, row_stride;
  const int64_t* keys;     // [rows]; candidate j of a row has candidate_uniform(key, j)
  int64_t num_candidates;  // K >= 1
  int64_t* tokens;         // [rows, K], written
  float* log_q;            // [rows, K], written: log(weight / sum of the row's weights), <= 0
};

// A row's weights may add up to this, the largest float, so that no part of the sum overflows.
inline constexpr double kMaxWeights = 3.4028234663852886e38;

namespace cpu {
Status sample_weights(const SampleWeightsArgs& args, int64_t begin, int64_t end);
}
namespace cuda {
// Bytes of device memory that the op wants to work in, aligned to 8; may be 0.
int64_t sample_weights_workspace(const SampleWeightsArgs& args);
// A bad row gets tokens -1 and log_q NaN.
Status sample_weights(const SampleWeightsArgs& args, void* workspace, void* stream);
}  // namespace cuda

}  // namespace edlm
