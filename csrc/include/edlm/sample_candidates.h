// sample_candidates: K independent draws per row of logits from one read, with their
// log-probabilities.
#pragma once

#include <cstdint>

#include "edlm/dtype.h"
#include "edlm/philox.h"
#include "edlm/status.h"

namespace edlm {

struct SampleCandidatesArgs {
  const void* logits;  // [rows, vocab], `row_stride` elements from row to row
  DType dtype;
  int64_t rows, vocab, row_stride;
  const int64_t* keys;     // [rows]; candidate j of a row uses words (key, j), whatever K is
  int64_t num_candidates;  // K >= 1
  int64_t forbidden_id;    // never drawn and not part of the normalisation; -1 for none
  float temperature;       // in [kMinTemperature, kMaxTemperature] (row_sampling.h)
  float top_p;             // in (0, 1]; below 1 the row may be read more than once
  int64_t* tokens;         // [rows, K], written
  float* log_q;            // [rows, K], written, <= 0
};

// The uniform of candidate `j`.
EDLM_HD double candidate_uniform(int64_t key, int64_t j) {
  return uniform(random_bits(uint64_t(key), uint64_t(j), 0, Purpose::kSampleCandidates));
}

namespace cpu {
Status sample_candidates(const SampleCandidatesArgs& args, int64_t begin, int64_t end);
}
namespace cuda {
// Bytes of device memory that the op wants to work in, aligned to 8; may be 0.
int64_t sample_candidates_workspace(const SampleCandidatesArgs& args);
// A bad row gets tokens -1 and log_q NaN.
Status sample_candidates(const SampleCandidatesArgs& args, void* workspace, void* stream);
}  // namespace cuda

}  // namespace edlm
