/// @file
/// residual_draw: accepts a draft of q by min(1, p / q), or draws from (p - q)+ in its place. If
/// the draft was drawn from q, what comes out is drawn from p, whatever q is (speculative
/// sampling).
///
/// The residual (p - q)+ is drawn from by rejection: a token x of p is kept with probability
/// max(0, 1 - q(x) / p(x)). A refusal has probability m = sum of (p - q)+, and the draws it then
/// takes are 1 / m on average: about one draw to a row whatever p and q are, and both rows are read
/// once. Where the first kResidualTries draws are all thrown away (less than one row in 80, if
/// drafts come from q), the rows are read again and the residual is summed.
#pragma once

#include <stdint.h>

#include "edlm/dtype.h"
#include "edlm/status.h"

/// A matrix of logits and the distribution that a row of it means.
typedef struct edlm_logit_rows {
  const void* logits;  ///< [rows, vocab], `row_stride` elements from row to row
  edlm_dtype dtype;
  int64_t rows, vocab, row_stride;
  int64_t forbidden_id;  ///< of probability 0; -1 for none
  float temperature;     ///< in [1e-30, 1e30]
} edlm_logit_rows;

/// Both matrices have the same rows and dtype. Their vocabularies may differ: a token that one
/// lacks has probability 0 there.
typedef struct edlm_residual_draw_args {
  edlm_logit_rows p, q;
  const int64_t* draft;  ///< [rows], in [0, q.vocab)
  const int64_t* keys;   ///< [rows]
  int64_t* tokens;       ///< [rows], written
  uint8_t* accepted;     ///< [rows], written: whether the token is the draft, taken as it came
  float* log_p;          ///< [rows], written: log p(token), <= 0
} edlm_residual_draw_args;

EDLM_C_BEGIN
/// Rows `begin` to `end` (not included).
EDLM_API edlm_status edlm_cpu_residual_draw(const edlm_residual_draw_args* args, int64_t begin,
                                            int64_t end) EDLM_NOEXCEPT;
/// Bytes of device memory that the op wants to work in, aligned to 8; may be 0.
EDLM_API int64_t edlm_cuda_residual_draw_workspace(const edlm_residual_draw_args* args)
    EDLM_NOEXCEPT;
/// A bad row of either, and one whose draft is outside q's vocabulary, gets token -1, accepted 0
/// and log_p NaN.
EDLM_API edlm_status edlm_cuda_residual_draw(const edlm_residual_draw_args* args, void* workspace,
                                             void* stream) EDLM_NOEXCEPT;
EDLM_C_END

#ifdef __cplusplus
#include <cmath>

#include "edlm/philox.h"

namespace edlm {

using LogitRows = edlm_logit_rows;
using ResidualDrawArgs = edlm_residual_draw_args;

inline constexpr int kResidualTries = 32;
inline constexpr int kResidualSummed = kResidualTries + 1;

/// The uniforms of a row: `place` 0 decides on the draft, 1 to kResidualTries are the tries, each
/// with one to draw and one to decide, and kResidualSummed draws from the summed residual.
enum class ResidualUse : uint32_t { kDecide, kDraw };
EDLM_HD double residual_uniform(int64_t key, int64_t place, ResidualUse use) {
  return uniform(
      random_bits(uint64_t(key), uint64_t(place), uint32_t(use), Purpose::kResidualDraw));
}

/// Whether a draft is taken, given log p and log q of it. One of q = 0 is taken if p > 0; one of p
/// = 0 never is.
EDLM_HD bool takes_draft(int64_t key, double log_p, double log_q) {
  return log(residual_uniform(key, 0, ResidualUse::kDecide)) < log_p - log_q;
}

/// Whether the i-th token drawn from p is kept as one of the residual: with probability 1 - q / p.
EDLM_HD bool keeps_try(int64_t key, int i, double log_p, double log_q) {
  return log(residual_uniform(key, i + 1, ResidualUse::kDecide)) > log_q - log_p;
}

namespace cpu {
EDLM_API Status residual_draw(const ResidualDrawArgs& args, int64_t begin, int64_t end);
}
namespace cuda {
EDLM_API int64_t residual_draw_workspace(const ResidualDrawArgs& args);
EDLM_API Status residual_draw(const ResidualDrawArgs& args, void* workspace, void* stream);
}  // namespace cuda

}  // namespace edlm
#endif
