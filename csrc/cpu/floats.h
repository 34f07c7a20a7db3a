// Registers of floats, of the instruction set that EDLM_ISA names: what row_pass_isa.cpp is written
// in.
#pragma once

#include <cstdint>
#include <cstring>
#include <utility>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "row_pass.h"

namespace edlm::cpu::EDLM_ISA {
namespace {

constexpr int kWidth = EDLM_ISA_WIDTH;
// Rows are padded with -inf to a multiple of this, the same for every instruction set.
constexpr int64_t kPad = 16;
constexpr float kMinusInf = -__builtin_inff();

typedef float Floats __attribute__((vector_size(4 * kWidth)));
typedef int32_t Ints __attribute__((vector_size(4 * kWidth)));
typedef uint32_t Uints __attribute__((vector_size(4 * kWidth)));
typedef uint16_t Halves __attribute__((vector_size(2 * kWidth)));

EDLM_HD Ints lane_numbers() {
  Ints lanes{};
  for (int i = 0; i < kWidth; ++i) lanes[i] = i;
  return lanes;
}
EDLM_HD Floats splat(float value) { return Floats{} + value; }
EDLM_HD Floats max(Floats a, Floats b) { return a > b ? a : b; }
EDLM_HD Floats min(Floats a, Floats b) { return a < b ? a : b; }

EDLM_HD Floats load(const float* from) {
  Floats value;
  memcpy(&value, from, sizeof value);
  return value;
}
EDLM_HD Uints load_words(const void* from) {
  Halves words;
  memcpy(&words, from, sizeof words);
  return __builtin_convertvector(words, Uints);
}
EDLM_HD Floats load(const BFloat16* from) { return (Floats)(load_words(from) << 16); }
// The vector form of to_float(Float16).
EDLM_HD Floats load(const Float16* from) {
  const Uints words = load_words(from);
  const Uints sign = (words & 0x8000u) << 16;
  const Uints magnitude = (words & 0x7fffu) << 13;
  const Uints scaled = (Uints)((Floats)magnitude * 0x1p112f);
  return (Floats)(sign | (magnitude >= 0x0f800000u ? magnitude | 0x7f800000u : scaled));
}
// 2 * kWidth tokens, in an order of the dtype's own.
template <class T>
EDLM_HD void load_two(const T* from, Floats* a, Floats* b) {
  *a = load(from);
  *b = load(from + kWidth);
}
EDLM_HD void load_two(const BFloat16* from, Floats* a, Floats* b) {
  Uints words;
  memcpy(&words, from, sizeof words);
  *a = (Floats)(words << 16);
  *b = (Floats)(words & 0xffff0000u);
}
EDLM_HD void store(float* to, Floats value) { memcpy(to, &value, sizeof value); }
// The first `count` < kWidth, and `rest` in the other lanes: nothing beyond is read.
template <class T>
EDLM_HD Floats load_first(const T* from, int64_t count, float rest) {
#if defined(__AVX512F__)
  const __mmask16 first = __mmask16((1u << count) - 1);
  if constexpr (sizeof(T) == 4) {
    return (Floats)_mm512_mask_loadu_ps((__m512)splat(rest), first, from);
  } else {
    T words[kWidth];
    _mm256_storeu_si256((__m256i*)words, _mm256_maskz_loadu_epi16(first, from));
    return (Floats)_mm512_mask_mov_ps((__m512)splat(rest), first, (__m512)load(words));
  }
#else
  float values[kWidth];
  store(values, splat(rest));
  for (int64_t i = 0; i < count; ++i) values[i] = to_float(from[i]);
  return load(values);
#endif
}

// 1 / T in powers of two, and the t whose power, 2^-127, is 0 as a float.
struct Scale {
  Floats log2;
  Floats lowest;
};
EDLM_HD Scale scale_of(float inv_temperature) {
  const float log2 = inv_temperature * 1.44269504f;
  return {splat(log2), splat(-127 / log2)};
}

// What exp_raised wants: t, or the lowest whose power is 0; finite but for NaN, which stays.
EDLM_HD Floats raised(Floats t, const Scale& scale) { return max(scale.lowest, t); }

EDLM_HD Floats exp_raised(Floats t, const Scale& scale) {
  // 1.5 * 2^23 rounds to an integer when added; 127 is the bias of a float's exponent.
  const Floats magic = splat(12582912.0f + 127.0f);
  const Floats shifted = t * scale.log2 + magic;
  const Floats f = t * scale.log2 - (shifted - magic);
  // 2^f on [-1/2, 1/2], minimax of degree 5 with p(0) = 1.
  Floats p = splat(0.001326472731307149f);
  p = p * f + 0.009671512991189957f;
  p = p * f + 0.05550733581185341f;
  p = p * f + 0.24022242426872253f;
  p = p * f + 0.6931470036506653f;
  p = p * f + 1.0f;
  // A product with 2^n, not an integer sum into p's exponent: NaN must stay NaN.
  return p * (Floats)((Ints)shifted << 23);
}

// exp(t / T) for t / T <= 80: relative error below 2e-7, 0 below -87 (where fp32 exp turns
// subnormal) and at -inf, NaN at NaN.
EDLM_HD Floats exp_scaled(Floats t, const Scale& scale) {
  return exp_raised(raised(t, scale), scale);
}

// The lanes from kFrom on, and those before it.
template <int kFrom, class Lanes, int... kLane>
EDLM_HD Lanes turn(Lanes value, std::integer_sequence<int, kLane...>) {
  return __builtin_shufflevector(value, value, (kLane + kFrom)...);
}
// op over the lanes, by halves: a chain over 16 lanes would cost more than a short row.
template <int kLanes, int kHalf = kLanes / 2, class Lanes, class Op>
EDLM_HD auto fold(Lanes value, Op op) {
  if constexpr (kHalf == 0) {
    return value[0];
  } else {
    const Lanes turned = turn<kHalf>(value, std::make_integer_sequence<int, kLanes>{});
    return fold<kLanes, kHalf / 2>(op(value, turned), op);
  }
}
EDLM_HD float add_lanes(Floats value) {
  return fold<kWidth>(value, [](Floats a, Floats b) { return a + b; });
}
EDLM_HD float max_lanes(Floats value) { return fold<kWidth>(value, max); }
EDLM_HD float min_lanes(Floats value) { return fold<kWidth>(value, min); }

#if defined(__AVX2__) && !defined(__AVX512F__)
// For each mask of eight lanes, those that it names, in order.
struct LaneTable {
  uint8_t lanes[256][8] = {};
  constexpr LaneTable() {
    for (int mask = 0; mask < 256; ++mask) {
      for (int i = 0, n = 0; i < 8; ++i) {
        if (mask >> i & 1) lanes[mask][n++] = uint8_t(i);
      }
    }
  }
};
constexpr LaneTable kLaneTable;
#endif

// Writes the lanes from `low` to `high` one after another, and garbage up to a register's end; with
// kIds also their ids. Returns how many they are.
template <bool kIds>
EDLM_HD int pack(Floats values, Floats low, Floats high, Ints ids, float* to, int32_t* to_ids) {
#if defined(__AVX512F__)
  const __mmask16 from_low = _mm512_cmp_ps_mask((__m512)values, (__m512)low, _CMP_GE_OQ);
  const __mmask16 keep =
      _mm512_mask_cmp_ps_mask(from_low, (__m512)values, (__m512)high, _CMP_LE_OQ);
  _mm512_storeu_ps(to, _mm512_maskz_compress_ps(keep, (__m512)values));
  if (kIds) _mm512_storeu_si512(to_ids, _mm512_maskz_compress_epi32(keep, (__m512i)ids));
  return __builtin_popcount(keep);
#else
  const Ints within = (values >= low) & (values <= high);
#if defined(__AVX2__)
  const int keep = _mm256_movemask_ps((__m256)within);
  const __m256i lanes =
      _mm256_cvtepu8_epi32(_mm_loadl_epi64((const __m128i*)kLaneTable.lanes[keep]));
  _mm256_storeu_ps(to, _mm256_permutevar8x32_ps((__m256)values, lanes));
  if (kIds) {
    _mm256_storeu_si256((__m256i*)to_ids, _mm256_permutevar8x32_epi32((__m256i)ids, lanes));
  }
  return __builtin_popcount(keep);
#else
  float value[kWidth];
  int32_t keep[kWidth];
  memcpy(keep, &within, sizeof keep);
  int64_t some[kWidth / 2];
  memcpy(some, keep, sizeof some);
  int64_t any = 0;
  for (const int64_t two : some) any |= two;
  if (!any) return 0;
  store(value, values);
  int count = 0;
  for (int i = 0; i < kWidth; ++i) {
    to[count] = value[i];
    if (kIds) to_ids[count] = ids[i];
    count -= keep[i];
  }
  return count;
#endif
#endif
}

EDLM_HD bool holds_forbidden(const Row& row, int64_t begin, int64_t count) {
  return row.forbidden_id >= begin && row.forbidden_id < begin + count;
}
// Copies [begin, begin + count) as floats, the forbidden token as `nothing`, padded with it.
template <class T>
EDLM_HD int64_t copy_padded(const Row& row, int64_t begin, int64_t count, float* to,
                            float nothing = kMinusInf) {
  const T* from = static_cast<const T*>(row.logits) + begin;
  const int64_t padded = ceil_div(count, kPad) * kPad;
  for (int64_t i = padded - kPad; i < padded; i += kWidth) store(to + i, splat(nothing));
  for (int64_t i = 0; i + kWidth <= count; i += kWidth) {
    __builtin_prefetch(from + i + kChunk);
    store(to + i, load(from + i));
  }
  if (count >= kWidth) {
    store(to + count - kWidth, load(from + count - kWidth));  // overlaps the last whole register
  } else {
    for (int64_t i = 0; i < count; ++i) to[i] = to_float(from[i]);
  }
  if (holds_forbidden(row, begin, count)) to[row.forbidden_id - begin] = nothing;
  return padded;
}

}  // namespace
}  // namespace edlm::cpu::EDLM_ISA
