/// @file
/// sample_candidates: K independent draws per row of logits from one read, with their
/// log-probabilities.
#pragma once

#include <stdint.h>

#include "edlm/dtype.h"
#include "edlm/status.h"

/// The law of a row is softmax(logits / temperature) without the forbidden token, cut three times,
/// each cut renormalising what the one before it left:
///   top_k  keeps the top_k largest logits and all that equal the last of them,
///   top_p  keeps the largest logits whose probabilities first reach top_p, and all equal to the
///          last of them,
///   min_p  keeps what is at least min_p times as likely as the most likely token.
typedef struct edlm_sample_candidates_args {
  const void* logits;  ///< [rows, vocab], `row_stride` elements from row to row
  edlm_dtype dtype;
  int64_t rows, vocab, row_stride;
  const int64_t* keys;            ///< [rows]; candidate j of a row uses words (key, j), for any K
  int64_t num_candidates;         ///< K >= 1
  int64_t forbidden_id;           ///< never drawn, not part of the normalisation; -1 for none
  float temperature;              ///< in [1e-30, 1e30]
  int64_t top_k EDLM_DEFAULT(0);  ///< >= 0; 0 and vocab and more keep all
  double top_p EDLM_DEFAULT(1);   ///< in (0, 1]; 1 keeps all
  double min_p EDLM_DEFAULT(0);   ///< in [0, 1]; 0 keeps all
  int64_t* tokens;                ///< [rows, K], written
  float* log_q;                   ///< [rows, K], written, <= 0
  /// [rows, 3], written, or null: the law's entropy in nats, and the log-probabilities of its two
  /// most likely tokens, -inf for none.
  float* statistics EDLM_DEFAULT(nullptr);
#ifdef __cplusplus
  /// Then the row is read more than once.
  EDLM_HD bool cut() const { return (top_k > 0 && top_k < vocab) || top_p < 1 || min_p > 0; }
#endif
} edlm_sample_candidates_args;

EDLM_C_BEGIN
/// Rows `begin` to `end` (not included).
EDLM_API edlm_status edlm_cpu_sample_candidates(const edlm_sample_candidates_args* args,
                                                int64_t begin, int64_t end) EDLM_NOEXCEPT;
/// Bytes of device memory that the op wants to work in, aligned to 8; may be 0.
EDLM_API int64_t edlm_cuda_sample_candidates_workspace(const edlm_sample_candidates_args* args)
    EDLM_NOEXCEPT;
/// A bad row gets tokens -1, and NaN for log_q and statistics.
EDLM_API edlm_status edlm_cuda_sample_candidates(const edlm_sample_candidates_args* args,
                                                 void* workspace, void* stream) EDLM_NOEXCEPT;
EDLM_C_END

#ifdef __cplusplus
#include "edlm/philox.h"

namespace edlm {

using SampleCandidatesArgs = edlm_sample_candidates_args;

/// The uniform of candidate `j`.
EDLM_HD double candidate_uniform(int64_t key, int64_t j) {
  return uniform(random_bits(uint64_t(key), uint64_t(j), 0, Purpose::kSampleCandidates));
}

namespace cpu {
EDLM_API Status sample_candidates(const SampleCandidatesArgs& args, int64_t begin, int64_t end);
}
namespace cuda {
EDLM_API int64_t sample_candidates_workspace(const SampleCandidatesArgs& args);
EDLM_API Status sample_candidates(const SampleCandidatesArgs& args, void* workspace, void* stream);
}  // namespace cuda

}  // namespace edlm
#endif
