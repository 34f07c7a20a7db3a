// Rows of up to kCell tokens, where what a row costs beside its tokens is most of it: one function
// for many rows, a row in registers, one search of its running sum a draw. Compiled as
// row_pass_isa.cpp is.
#include <algorithm>
#include <cmath>
#include <utility>

#include "floats.h"

namespace edlm::cpu::EDLM_ISA {
namespace {

constexpr int kHalf = kWidth / 2;
typedef double Doubles __attribute__((vector_size(8 * kHalf)));
typedef int64_t Longs __attribute__((vector_size(8 * kHalf)));
typedef uint64_t Ulongs __attribute__((vector_size(8 * kHalf)));

typedef float HalfFloats __attribute__((vector_size(4 * kHalf)));
template <int kFrom, int... kLane>
EDLM_HD HalfFloats half_from(Floats value, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(value, value, (kLane + kFrom)...);
}
template <int kFrom>
EDLM_HD Doubles widen_from(Floats value) {
  const HalfFloats half = half_from<kFrom>(value, std::make_integer_sequence<int, kHalf>{});
#if defined(__AVX512F__)  // GCC 12 converts by halves, and warns of the form without a mask
  return (Doubles)_mm512_maskz_cvtps_pd(0xff, (__m256)half);
#else
  return __builtin_convertvector(half, Doubles);
#endif
}
EDLM_HD void widen(Floats value, Doubles* lower, Doubles* upper) {
  *lower = widen_from<0>(value);
  *upper = widen_from<kHalf>(value);
}

// The lanes moved up by kBy, 0 in their place.
template <int kBy, int... kLane>
EDLM_HD Doubles shift_lanes(Doubles value, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(Doubles{}, value, (kLane < kBy ? kLane : kHalf + kLane - kBy)...);
}
template <int kBy>
EDLM_HD Doubles shift_lanes(Doubles value) {
  return shift_lanes<kBy>(value, std::make_integer_sequence<int, kHalf>{});
}

// The product of the low words.
EDLM_HD Longs times(Longs a, uint32_t b) {
#if defined(__AVX512F__)
  return (Longs)_mm512_maskz_mul_epu32(0xff, (__m512i)a, _mm512_set1_epi64(b));
#elif defined(__AVX2__)
  return (Longs)_mm256_mul_epu32((__m256i)a, _mm256_set1_epi64x(b));
#else
  return (Longs)(((Ulongs)a & 0xffffffff) * uint64_t{b});
#endif
}

// candidate_uniform of one (key, j) per lane; the words' upper halves are of no account until the
// end.
EDLM_HD void uniforms(const uint64_t* key, const uint64_t* index, double* to) {
  Longs w[4], keys;
  memcpy(&keys, key, sizeof keys);
  memcpy(&w[0], index, sizeof w[0]);
  Longs key_lo = keys, key_hi = (Longs)((Ulongs)keys >> 32);
  w[1] = (Longs)((Ulongs)w[0] >> 32);
  w[2] = Longs{};
  w[3] = Longs{} + int64_t(Purpose::kSampleCandidates);
  for (int round = 0; round < 10; ++round) {
    const Longs a = times(w[0], 0xD2511F53u), b = times(w[2], 0xCD9E8D57u);
    w[0] = (Longs)((Ulongs)b >> 32) ^ w[1] ^ key_lo;
    w[2] = (Longs)((Ulongs)a >> 32) ^ w[3] ^ key_hi;
    w[1] = b;
    w[3] = a;
    key_lo += 0x9E3779B9;
    key_hi += 0xBB67AE85;
  }
  const Ulongs bits = ((Ulongs)w[0] & 0xffffffff) | (Ulongs)w[1] << 32;
  // As uniform() has it: 52 bits, exact in the mantissa of a number from 1 to 2.
  const Doubles from_one = (Doubles)(bits >> 12 | 0x3ff0000000000000);
  const Doubles value = (from_one - 1.0) + 0x1p-53;
  memcpy(to, &value, sizeof value);
}

// The uniforms of rows' candidates one after another, made by the register.
class CandidateUniforms {
 public:
  CandidateUniforms(const int64_t* keys, int64_t candidates, int64_t begin, int64_t end)
      : keys_(keys), candidates_(candidates), row_(begin), end_(end) {}

  double next() {
    if (at_ == kBatch) refill();
    return value_[at_++];
  }

 private:
  static constexpr int kBatch = 32;

  void refill() {
    uint64_t key[kBatch] = {}, index[kBatch] = {};
    for (int i = 0; i < kBatch && row_ < end_; ++i) {
      key[i] = uint64_t(keys_[row_]);
      index[i] = uint64_t(candidate_);
      if (++candidate_ == candidates_) candidate_ = 0, ++row_;
    }
    for (int i = 0; i < kBatch; i += kHalf) uniforms(key + i, index + i, value_ + i);
    at_ = 0;
  }

  const int64_t* keys_;
  int64_t candidates_, row_, end_, candidate_ = 0;
  int at_ = kBatch;
  double value_[kBatch];
};

// One row's weights, exp((logit - reference) / T), 0 from the vocabulary's end to a register's.
struct ShortRow {
  alignas(64) float weight[kCell];
  alignas(64) double prefix[kCell];  // their inclusive sums
  double sum;
};

// What a row leaves until the logarithms of several are taken together.
struct RowTotals {
  static constexpr int64_t kRows = 16;
  float reference[kRows];  // the largest logit
  float second[kRows];     // the next one, -inf for none
  double sum[kRows], log_z[kRows];
  double moment[kRows];  // sum(weight (logit - reference))

  void take_logs(int64_t rows) {
    for (int64_t i = 0; i < rows; ++i) log_z[i] = std::log(sum[i]);
  }
  EDLM_HD float log_prob(int64_t i, float logit, float inv_temperature) const {
    const double gap = double(logit) - double(reference[i]);
    return float(std::min(0.0, gap * double(inv_temperature) - log_z[i]));
  }
  // As sample_candidates.h has them.
  void statistics(int64_t i, float inv_temperature, float* to) const {
    to[0] = float(std::max(0.0, log_z[i] - moment[i] / sum[i] * double(inv_temperature)));
    to[1] = log_prob(i, reference[i], inv_temperature);
    to[2] = log_prob(i, second[i], inv_temperature);
  }
};

// What all rows of a call have in common.
struct Rows {
  int64_t vocab, padded;
  Ints lanes, forbidden;
  Scale scale;
};
EDLM_HD Rows rows_of(int64_t vocab, int64_t forbidden_id, float inv_temperature) {
  return {vocab, ceil_div(vocab, kWidth) * kWidth, lane_numbers(), Ints{} + int32_t(forbidden_id),
          scale_of(inv_temperature)};
}

// Calls add(i, weights) for each register of the row and returns the weights' reference.
template <class T, class Add>
EDLM_HD float weigh(const T* logits, const Rows& rows, const Add& add) {
  Floats kept[kCell / kWidth], largest = splat(kMinusInf);
  for (int64_t i = 0; i < rows.vocab; i += kWidth) {
    Floats logit = i + kWidth <= rows.vocab ? load(logits + i)
                                            : load_first(logits + i, rows.vocab - i, kMinusInf);
    logit = rows.lanes + int32_t(i) == rows.forbidden ? splat(kMinusInf) : logit;
    largest = max(logit, largest);
    kept[i / kWidth] = logit;
  }
  const float reference = max_lanes(largest);
  const Floats shift = splat(reference == kMinusInf ? 0.0f : reference);
  for (int64_t i = 0; i < rows.padded; i += kWidth) {
    add(i, exp_scaled(kept[i / kWidth] - shift, rows.scale));
  }
  return reference;
}

EDLM_HD Status check(double sum, int64_t r) {
  if (sum > 0) return {};
  return {std::isnan(sum) ? Code::kNotANumber : Code::kNothingLeft, r};
}

// A register's inclusive sums, by shifts of 1, 2, ...
EDLM_HD Doubles add_up(Doubles sums) {
  sums += shift_lanes<1>(sums);
  if constexpr (kHalf > 2) sums += shift_lanes<2>(sums);
  if constexpr (kHalf > 4) sums += shift_lanes<4>(sums);
  return sums;
}
EDLM_HD Doubles last(Doubles value) { return Doubles{} + value[kHalf - 1]; }

template <class T>
EDLM_HD float fill(const T* logits, const Rows& rows, ShortRow* row) {
  Doubles before{};
  const float reference = weigh(logits, rows, [&](int64_t i, Floats weights) {
    store(row->weight + i, weights);
    Doubles lower, upper;
    widen(weights, &lower, &upper);
    lower = add_up(lower);
    upper = add_up(upper) + last(lower);
    lower += before;
    upper += before;
    before = last(upper);
    memcpy(row->prefix + i, &lower, sizeof lower);
    memcpy(row->prefix + i + kHalf, &upper, sizeof upper);
  });
  row->sum = before[0];
  return reference;
}

// The first token whose inclusive sum exceeds share * sum.
EDLM_HD int64_t token_at(const ShortRow& row, const Rows& rows, double share) {
  const Doubles target = Doubles{} + share * row.sum;
  Longs passed{};
  for (int64_t i = 0; i < rows.padded; i += kHalf) {
    Doubles sums;
    memcpy(&sums, row.prefix + i, sizeof sums);
    passed -= sums <= target;  // -1 where it holds
  }
  const int64_t index = fold<kHalf>(passed, [](Longs a, Longs b) { return a + b; });
  return index < rows.vocab ? index : pick_at(row.weight, rows.vocab, rows.vocab, 0.0, 0.0).index;
}

// The second and the moment of row `i`, whose reference is there.
template <class T>
void look_again(const T* logits, int64_t vocab, int64_t forbidden, const ShortRow& row, int64_t i,
                RowTotals* totals) {
  float top = kMinusInf, second = kMinusInf;
  double moment = 0;
  for (int64_t id = 0; id < vocab; ++id) {
    const float logit = id == forbidden ? kMinusInf : to_float(logits[id]);
    second = std::max(second, std::min(top, logit));
    top = std::max(top, logit);
    const double gap = double(logit) - double(totals->reference[i]);
    moment += row.weight[id] > 0 ? double(row.weight[id]) * gap : 0;
  }
  totals->second[i] = second;
  totals->moment[i] = moment;
}

template <class T>
Status sample(const SampleCandidatesArgs& args, int64_t begin, int64_t end) {
  const float inv_temperature = 1.0f / args.temperature;
  const Rows rows = rows_of(args.vocab, args.forbidden_id, inv_temperature);
  const int64_t candidates = args.num_candidates;
  CandidateUniforms uniforms(args.keys, candidates, begin, end);
  ShortRow row;
  RowTotals totals;
  for (int64_t first = begin; first < end; first += RowTotals::kRows) {
    const int64_t count = std::min(RowTotals::kRows, end - first);
    const T* logits = static_cast<const T*>(args.logits) + first * args.row_stride;
    int64_t* tokens = args.tokens + first * candidates;
    float* log_q = args.log_q + first * candidates;
    for (int64_t i = 0; i < count; ++i) {
      totals.reference[i] = fill(logits + i * args.row_stride, rows, &row);
      if (const Status status = check(row.sum, first + i); !status) return status;
      totals.sum[i] = row.sum;
      if (args.statistics) {
        look_again(logits + i * args.row_stride, args.vocab, args.forbidden_id, row, i, &totals);
      }
      for (int64_t j = 0; j < candidates; ++j) {
        tokens[i * candidates + j] = token_at(row, rows, uniforms.next());
      }
    }
    totals.take_logs(count);
    for (int64_t i = 0; i < count; ++i) {
      if (args.statistics) {
        totals.statistics(i, inv_temperature, args.statistics + 3 * (first + i));
      }
      for (int64_t j = 0; j < candidates; ++j) {
        const float logit = to_float(logits[i * args.row_stride + tokens[i * candidates + j]]);
        log_q[i * candidates + j] = totals.log_prob(i, logit, inv_temperature);
      }
    }
  }
  return {};
}

template <class T>
Status score(const TokenLogProbsArgs& args, int64_t begin, int64_t end) {
  const float inv_temperature = 1.0f / args.temperature;
  const Rows rows = rows_of(args.vocab, args.forbidden_id, inv_temperature);
  RowTotals totals;
  for (int64_t first = begin; first < end; first += RowTotals::kRows) {
    const int64_t count = std::min(RowTotals::kRows, end - first);
    const T* logits = static_cast<const T*>(args.logits) + first * args.row_stride;
    for (int64_t i = 0; i < count; ++i) {
      const int64_t target = args.targets[first + i];
      if (target < 0 || target >= args.vocab) return {Code::kBadTarget, first + i, 1};
      Doubles sums{};
      totals.reference[i] = weigh(logits + i * args.row_stride, rows, [&](int64_t, Floats weights) {
        Doubles lower, upper;
        widen(weights, &lower, &upper);
        sums += lower + upper;
      });
      totals.sum[i] = fold<kHalf>(sums, [](Doubles a, Doubles b) { return a + b; });
      if (const Status status = check(totals.sum[i], first + i); !status) return status;
    }
    totals.take_logs(count);
    for (int64_t i = 0; i < count; ++i) {
      const int64_t target = args.targets[first + i];
      const float logit = to_float(logits[i * args.row_stride + target]);
      args.log_probs[first + i] =
          target == args.forbidden_id ? kMinusInf : totals.log_prob(i, logit, inv_temperature);
    }
  }
  return {};
}

Status sample_any(const SampleCandidatesArgs& args, int64_t begin, int64_t end) {
  return with_dtype(args.dtype, [&](auto type) {
    return sample<typename decltype(type)::type>(args, begin, end);
  });
}
Status score_any(const TokenLogProbsArgs& args, int64_t begin, int64_t end) {
  return with_dtype(args.dtype, [&](auto type) {
    return score<typename decltype(type)::type>(args, begin, end);
  });
}

}  // namespace

extern const ShortRows kShortRows;
const ShortRows kShortRows = {sample_any, score_any};

}  // namespace edlm::cpu::EDLM_ISA
