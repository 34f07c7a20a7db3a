// token_log_probs: log-softmax of each row at one target, never materialised.
#pragma once

#include <cstdint>

#include "edlm/dtype.h"
#include "edlm/status.h"

namespace edlm {

struct TokenLogProbsArgs {
  const void* logits;  // [rows, vocab], `row_stride` elements from row to row
  DType dtype;
  int64_t rows, vocab, row_stride;
  const int64_t* targets;  // [rows], in [0, vocab)
  int64_t forbidden_id;    // not part of the normalisation, itself scored -inf; -1 for none
  float temperature;       // in [kMinTemperature, kMaxTemperature] (row_sampling.h)
  float* log_probs;        // [rows], written, <= 0
};

namespace cpu {
Status token_log_probs(const TokenLogProbsArgs& args, int64_t begin, int64_t end);
}
namespace cuda {
// Bytes of device memory that the op wants to work in, aligned to 8; may be 0.
int64_t token_log_probs_workspace(const TokenLogProbsArgs& args);
// A bad row, and one whose target is outside the vocabulary, gets NaN.
Status token_log_probs(const TokenLogProbsArgs& args, void* workspace, void* stream);
}  // namespace cuda

}  // namespace edlm
