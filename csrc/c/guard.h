// What the entry points of C add to those of C++: the scalars of the structs are checked, and no
// exception gets out.
#pragma once

#include <cstddef>
#include <new>
#include <stdexcept>

#include "edlm/edlm.h"
#include "edlm/row_sampling.h"

namespace edlm::c {

inline Status wrong(ptrdiff_t member) { return {Code::kBadArgument, -1, int32_t(member)}; }

// Ends a `check` with the offset of a member that does not hold what it should.
#define EDLM_WANT(member, holds) \
  if (!(holds)) return wrong(offsetof(Args, member))

inline bool good_temperature(double t) { return t >= kMinTemperature && t <= kMaxTemperature; }
inline bool good_dtype(DType dtype) { return uint32_t(dtype) <= uint32_t(DType::kFloat16); }

// How many rows (or sequences) an op works on.
inline int64_t rows_of(const StreamKeysArgs& args) { return args.count; }
inline int64_t rows_of(const ResampleArgs& args) { return args.batch; }
inline int64_t rows_of(const RevealStepsArgs& args) { return args.batch; }
inline int64_t rows_of(const ResidualDrawArgs& args) { return args.p.rows; }
inline int64_t rows_of(const PlaceCandidatesArgs& args) { return args.sequences; }
inline int64_t rows_of(const RevealChosenArgs& args) { return args.sequences; }
inline int64_t rows_of(const SumLogProbsArgs& args) { return args.sequences; }
template <class Args>
int64_t rows_of(const Args& args) {
  return args.rows;
}

inline Status check(const StreamKeysArgs& args) {
  using Args = StreamKeysArgs;
  const bool none = args.count == 0;
  EDLM_WANT(count, args.count >= 0);
  EDLM_WANT(dims, args.dims >= 0);
  EDLM_WANT(seeds, none || args.seeds);
  EDLM_WANT(coordinates, none || args.dims == 0 || args.coordinates);
  EDLM_WANT(keys, none || args.keys);
  return {};
}

inline Status check(const SampleCandidatesArgs& args) {
  using Args = SampleCandidatesArgs;
  const bool none = args.rows == 0;
  EDLM_WANT(rows, args.rows >= 0);
  EDLM_WANT(vocab, args.vocab >= 1);
  EDLM_WANT(logits, none || args.logits);
  EDLM_WANT(dtype, good_dtype(args.dtype));
  EDLM_WANT(keys, none || args.keys);
  EDLM_WANT(num_candidates, args.num_candidates >= 1);
  EDLM_WANT(forbidden_id, args.forbidden_id >= -1 && args.forbidden_id < args.vocab);
  EDLM_WANT(temperature, good_temperature(args.temperature));
  EDLM_WANT(top_k, args.top_k >= 0);
  EDLM_WANT(top_p, args.top_p > 0 && args.top_p <= 1);
  EDLM_WANT(min_p, args.min_p >= 0 && args.min_p <= 1);
  EDLM_WANT(tokens, none || args.tokens);
  EDLM_WANT(log_q, none || args.log_q);
  return {};
}

inline Status check(const SampleWeightsArgs& args) {
  using Args = SampleWeightsArgs;
  const bool none = args.rows == 0;
  EDLM_WANT(rows, args.rows >= 0);
  EDLM_WANT(vocab, args.vocab >= 1);
  EDLM_WANT(weights, none || args.weights);
  EDLM_WANT(dtype, good_dtype(args.dtype));
  EDLM_WANT(keys, none || args.keys);
  EDLM_WANT(num_candidates, args.num_candidates >= 1);
  EDLM_WANT(tokens, none || args.tokens);
  EDLM_WANT(log_q, none || args.log_q);
  return {};
}

inline Status check(const TokenLogProbsArgs& args) {
  using Args = TokenLogProbsArgs;
  const bool none = args.rows == 0;
  EDLM_WANT(rows, args.rows >= 0);
  EDLM_WANT(vocab, args.vocab >= 1);
  EDLM_WANT(logits, none || args.logits);
  EDLM_WANT(dtype, good_dtype(args.dtype));
  EDLM_WANT(targets, none || args.targets);
  EDLM_WANT(forbidden_id, args.forbidden_id >= -1 && args.forbidden_id < args.vocab);
  EDLM_WANT(temperature, good_temperature(args.temperature));
  EDLM_WANT(log_probs, none || args.log_probs);
  return {};
}

inline Status check(const LogitRows& rows, ptrdiff_t at) {
  using Args = LogitRows;
  const auto wrong = [at](ptrdiff_t member) { return c::wrong(at + member); };
  EDLM_WANT(rows, rows.rows >= 0);
  EDLM_WANT(vocab, rows.vocab >= 1);
  EDLM_WANT(logits, rows.rows == 0 || rows.logits);
  EDLM_WANT(dtype, good_dtype(rows.dtype));
  EDLM_WANT(forbidden_id, rows.forbidden_id >= -1 && rows.forbidden_id < rows.vocab);
  EDLM_WANT(temperature, good_temperature(rows.temperature));
  return {};
}

inline Status check(const ResidualDrawArgs& args) {
  using Args = ResidualDrawArgs;
  const bool none = args.p.rows == 0;
  if (const Status p = check(args.p, offsetof(Args, p)); !p) return p;
  if (const Status q = check(args.q, offsetof(Args, q)); !q) return q;
  EDLM_WANT(q.rows, args.q.rows == args.p.rows);
  EDLM_WANT(q.dtype, args.q.dtype == args.p.dtype);
  EDLM_WANT(draft, none || args.draft);
  EDLM_WANT(keys, none || args.keys);
  EDLM_WANT(tokens, none || args.tokens);
  EDLM_WANT(accepted, none || args.accepted);
  EDLM_WANT(log_p, none || args.log_p);
  return {};
}

inline Status check(const ResampleArgs& args) {
  using Args = ResampleArgs;
  const bool none = args.batch == 0;
  EDLM_WANT(batch, args.batch >= 0);
  EDLM_WANT(candidates, args.candidates >= 1);
  EDLM_WANT(log_weights, none || args.log_weights);
  EDLM_WANT(keys, none || args.keys);
  EDLM_WANT(choice, none || args.choice);
  EDLM_WANT(ess, none || args.ess);
  EDLM_WANT(log_mean_weight, none || args.log_mean_weight);
  return {};
}

inline Status check(const RevealStepsArgs& args) {
  using Args = RevealStepsArgs;
  const bool none = args.batch == 0 || args.length == 0;
  EDLM_WANT(batch, args.batch >= 0);
  EDLM_WANT(length, args.length >= 0);
  EDLM_WANT(num_steps, args.num_steps >= 1);
  EDLM_WANT(keys, none || args.keys);
  EDLM_WANT(mask_probs, none || args.mask_probs);
  EDLM_WANT(steps, none || args.steps);
  return {};
}

inline Status check(const PlaceCandidatesArgs& args) {
  using Args = PlaceCandidatesArgs;
  const bool none = args.sequences == 0, unscored = args.scored == 0;
  EDLM_WANT(sequences, args.sequences >= 0);
  EDLM_WANT(scored, args.scored >= 0 && args.scored <= args.sequences);
  EDLM_WANT(candidates, args.candidates >= 1);
  EDLM_WANT(length, args.length >= 0);
  EDLM_WANT(starts, none || args.starts);
  EDLM_WANT(rows, none || args.rows);
  EDLM_WANT(canvas, none || args.canvas);
  EDLM_WANT(failed, none || args.failed);
  EDLM_WANT(xt, unscored || args.xt);
  EDLM_WANT(x0, unscored || args.x0);
  EDLM_WANT(sums, unscored || args.sums);
  return {};
}

inline Status check(const RevealChosenArgs& args) {
  using Args = RevealChosenArgs;
  const bool none = args.sequences == 0;
  EDLM_WANT(sequences, args.sequences >= 0);
  EDLM_WANT(candidates, args.candidates >= 1);
  EDLM_WANT(length, args.length >= 0);
  EDLM_WANT(width, none || args.width >= 1);
  EDLM_WANT(temperature, good_temperature(args.temperature));
  EDLM_WANT(energy, none || args.energy);
  EDLM_WANT(keys, none || args.keys);
  EDLM_WANT(x0, none || args.x0);
  EDLM_WANT(starts, none || args.starts);
  EDLM_WANT(rows, none || args.rows);
  EDLM_WANT(columns, none || args.columns);
  EDLM_WANT(choice, none || args.choice);
  EDLM_WANT(canvas, none || args.canvas);
  EDLM_WANT(ess, none || args.ess);
  EDLM_WANT(log_z, none || args.log_z);
  EDLM_WANT(failed, none || args.failed);
  return {};
}

inline Status check(const SumLogProbsArgs& args) {
  using Args = SumLogProbsArgs;
  EDLM_WANT(count, args.count >= 0);
  EDLM_WANT(sequences, args.sequences >= 0);
  EDLM_WANT(log_probs, args.count == 0 || args.log_probs);
  EDLM_WANT(starts, args.starts || args.sequences == 0 || args.count % args.sequences == 0);
  EDLM_WANT(sums, args.sequences == 0 || args.sums);
  return {};
}

inline Status check(const PlanArgs& args) {
  using Args = PlanArgs;
  EDLM_WANT(batch, args.batch >= 0);
  EDLM_WANT(length, args.length >= 0);
  EDLM_WANT(steps, args.steps >= 0);
  EDLM_WANT(seeds, args.batch == 0 || args.seeds);
  EDLM_WANT(canvas, args.batch == 0 || args.length == 0 || args.canvas);
  EDLM_WANT(eps, args.eps > 0 && args.eps < 1);
  EDLM_WANT(sigma_eps, args.sigma_eps > 0 && args.sigma_eps < 1);
  return {};
}

#undef EDLM_WANT

template <class Body>
Status without_exceptions(const Body& body) noexcept {
  try {
    return body();
  } catch (const std::bad_alloc&) {
    return {Code::kNoMemory, -1, -1};
  } catch (const std::length_error&) {  // more than any memory
    return {Code::kNoMemory, -1, -1};
  }
}

// Rows `begin` to `end` of an op of C++; a range outside is argument -1.
template <class Args>
Status on_rows(Status (*op)(const Args&, int64_t, int64_t), const Args* args, int64_t begin,
               int64_t end) noexcept {
  if (!args) return wrong(-1);
  if (const Status status = check(*args); !status) return status;
  if (begin < 0 || begin > end || end > rows_of(*args)) return wrong(-1);
  return without_exceptions([&] { return op(*args, begin, end); });
}

}  // namespace edlm::c
