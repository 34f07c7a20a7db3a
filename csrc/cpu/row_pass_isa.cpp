// One row pass. The build compiles this file once per instruction set, with EDLM_ISA naming it and
// the compiler flags of that set; EDLM_ISA_WIDTH is its number of floats in a register.
#include <cstdint>
#include <cstring>

#include "row_pass.h"

namespace edlm::cpu::EDLM_ISA {
namespace {

constexpr int kWidth = EDLM_ISA_WIDTH;
// Rows are padded with -inf to a multiple of this, the same for every instruction set.
constexpr int64_t kPad = 16;
constexpr float kMinusInf = -__builtin_inff();
constexpr float kMaxGap = 20;
// A moment's rounding grows with the exponents it sums.
constexpr float kMaxMomentGap = 1;

typedef float Floats __attribute__((vector_size(4 * kWidth)));
typedef int32_t Ints __attribute__((vector_size(4 * kWidth)));
typedef uint32_t Uints __attribute__((vector_size(4 * kWidth)));
typedef uint16_t Halves __attribute__((vector_size(2 * kWidth)));

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

// op over the lanes, by halves: a chain over 16 lanes would cost more than a short row.
template <int kLanes, class Op>
EDLM_HD float fold(const float* lanes, Op op) {
  if constexpr (kLanes == 1) {
    return lanes[0];
  } else {
    float half[kLanes / 2];
    for (int i = 0; i < kLanes / 2; ++i) half[i] = op(lanes[i], lanes[i + kLanes / 2]);
    return fold<kLanes / 2>(half, op);
  }
}
EDLM_HD float add_lanes(Floats value) {
  float lanes[kWidth];
  store(lanes, value);
  return fold<kWidth>(lanes, [](float a, float b) { return a + b; });
}
EDLM_HD float max_lanes(Floats value) {
  float lanes[kWidth];
  store(lanes, value);
  return fold<kWidth>(lanes, [](float a, float b) { return a > b ? a : b; });
}
EDLM_HD float min_lanes(Floats value) {
  float lanes[kWidth];
  store(lanes, value);
  return fold<kWidth>(lanes, [](float a, float b) { return a < b ? a : b; });
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

template <class T>
EDLM_HD float max_of(const T* logits, int64_t count) {
  Floats largest = splat(kMinusInf);
  for (int64_t i = 0; i < count; i += kWidth) largest = max(load(logits + i), largest);
  return max_lanes(largest);
}

// The two largest of each lane.
struct TopTwo {
  Floats first = splat(kMinusInf), second = first;

  EDLM_HD void add(Floats value) {
    second = max(min(first, value), second);
    first = max(value, first);
  }
};

EDLM_HD void merge(const TopTwo& a, const TopTwo& b, float* first, float* second) {
  float values[4 * kWidth];
  store(values, a.first);
  store(values + kWidth, b.first);
  store(values + 2 * kWidth, a.second);
  store(values + 3 * kWidth, b.second);
  *first = *second = kMinusInf;
  for (const float value : values) {
    *second = value > *first ? *first : value > *second ? value : *second;
    *first = value > *first ? value : *first;
  }
}

// Sums exp((logit - reference) / T) over a padded chunk and returns its largest logit.
template <RowPart kPart, class T>
EDLM_HD float sum_chunk(const T* logits, int64_t count, float reference, const Scale& scale,
                        const RowSums& sums) {
  constexpr bool kMoments = kPart == RowPart::kStatistics;
  float* cell = kPart == RowPart::kMaxima ? sums.cell_max : sums.cell_sum;
  const Floats shift = splat(reference);
  TopTwo even_top, odd_top;
  Floats lanes{}, largest = splat(kMinusInf);
  double sum = 0, moment = 0;
  for (int64_t begin = 0; begin < count; begin += kCell) {
    const int64_t end = begin + kCell < count ? begin + kCell : count;
    Floats even{}, odd{}, even_moment{}, odd_moment{};
    const auto add = [&](Floats logit, Floats* sum, Floats* moment, TopTwo* top) {
      if constexpr (kMoments) {
        top->add(logit);
        const Floats t = raised(logit - shift, scale), weight = exp_raised(t, scale);
        *sum += weight;
        *moment += weight * t;
      } else {
        top->first = max(logit, top->first);
        *sum += exp_scaled(logit - shift, scale);
      }
    };
    if constexpr (kPart == RowPart::kMaxima) even_top.first = odd_top.first = splat(kMinusInf);
    int64_t i = begin;
    for (; i + 2 * kWidth <= end; i += 2 * kWidth) {
      // One chunk ahead, beyond the page where the hardware prefetcher stops.
      __builtin_prefetch(logits + i + kChunk);
      if (sizeof(T) == 4) __builtin_prefetch(logits + i + kChunk + kWidth);
      Floats a, b;
      load_two(logits + i, &a, &b);
      add(a, &even, &even_moment, &even_top);
      add(b, &odd, &odd_moment, &odd_top);
    }
    if (i < end) add(load(logits + i), &even, &even_moment, &even_top);
    if constexpr (kPart == RowPart::kMaxima) {
      const Floats top = max(even_top.first, odd_top.first);
      *cell++ = max_lanes(top);
      largest = max(top, largest);
    }
    if constexpr (kPart == RowPart::kCells || kMoments) {
      *cell = add_lanes(even + odd);
      sum += *cell++;
      if constexpr (kMoments) moment += add_lanes(even_moment + odd_moment);
    } else {
      lanes += even + odd;
    }
  }
  if constexpr (kMoments) {
    float top, second;
    merge(even_top, odd_top, &top, &second);
    *sums.chunk_sum = sum;
    *sums.chunk_statistics = {top, second, reference, moment};
    return top;
  }
  *sums.chunk_sum = kPart == RowPart::kCells ? sum : add_lanes(lanes);
  return max_lanes(kPart == RowPart::kMaxima ? largest : max(even_top.first, odd_top.first));
}

// Sums one padded chunk into `sums`, which point at its place, and updates the row's `reference`.
//
// The largest logit so far is nearly always a good reference for the next chunk, which then needs
// one pass. Where it is further than kMaxGap from the chunk's own, the chunk is summed again:
// nothing overflows, and only tokens below exp(-87 + kMaxGap) of a chunk's best vanish.
template <RowPart kPart, class T>
void add_chunk(const T* logits, int64_t count, const Scale& scale, float inv_temperature,
               const RowSums& sums, float* reference) {
  if (*reference == kMinusInf) *reference = max_of(logits, count);
  float shift = *reference == kMinusInf ? 0.0f : *reference;
  const float top = sum_chunk<kPart>(logits, count, shift, scale, sums);
  const float gap = (top - shift) * inv_temperature;
  if (top != kMinusInf && !(gap < kMaxGap && gap > -kMaxGap)) {
    shift = top;
    sum_chunk<kPart>(logits, count, shift, scale, sums);
  } else if (kPart == RowPart::kStatistics && gap > kMaxMomentGap) {
    // The sums stay as they are without statistics, so that the draws do.
    float cell_sum[kCellsPerChunk];
    double chunk_sum;
    RowSums again = sums;
    again.cell_sum = cell_sum;
    again.chunk_sum = &chunk_sum;
    sum_chunk<kPart>(logits, count, top, scale, again);
  }
  // A chunk without a token has no say in the row's reference.
  *sums.chunk_reference = top == kMinusInf ? kMinusInf : shift;
  *reference = top > *reference ? top : *reference;
}

template <class T, RowPart kPart>
void sum_row(const Row& row, const RowSums& sums) {
  alignas(64) float buffer[kChunk];
  const Scale scale = scale_of(row.inv_temperature);
  float reference = kMinusInf;
  for (int64_t chunk = 0, begin = 0; begin < row.vocab; ++chunk, begin += kChunk) {
    const int64_t count = begin + kChunk < row.vocab ? kChunk : row.vocab - begin;
    const RowSums at = sums.from_chunk(chunk);
    const auto add = [&](const auto* logits, int64_t padded) {
      add_chunk<kPart>(logits, padded, scale, row.inv_temperature, at, &reference);
    };
    if (count % kPad == 0 && !holds_forbidden(row, begin, count)) {
      add(static_cast<const T*>(row.logits) + begin, count);
    } else {
      add(buffer, copy_padded<T>(row, begin, count, buffer));
    }
  }
}

template <RowPart kPart>
void sum(const Row& row, const RowSums& sums) {
  with_dtype(row.dtype,
             [&](auto type) { sum_row<typename decltype(type)::type, kPart>(row, sums); });
}

template <class T>
EDLM_HD void weights_of(const T* logits, int64_t count, float reference, const Scale& scale,
                        float* weights) {
  for (int64_t i = 0; i < count; i += kWidth) {
    store(weights + i, exp_scaled(load(logits + i) - splat(reference), scale));
  }
}

void weights(const Row& row, int64_t begin, int64_t count, float reference, float* weights) {
  const Scale scale = scale_of(row.inv_temperature);
  with_dtype(row.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (count == kCell && !holds_forbidden(row, begin, count)) {
      weights_of(static_cast<const T*>(row.logits) + begin, kCell, reference, scale, weights);
    } else {
      const int64_t padded = copy_padded<T>(row, begin, count, weights);
      weights_of(weights, padded, reference, scale, weights);
    }
  });
}

void cell(const Row& row, int64_t begin, int64_t count, float reference, CellWeights* cell) {
  cell->count = count;
  weights(row, begin, count, reference, cell->weight);
  cell->add_groups();
}

// Appends the tokens from `first` on whose lanes `keep` names. Writes whole registers.
EDLM_HD int64_t append(Floats logits, Ints keep, int64_t first, float* to, int32_t* ids,
                       int64_t found) {
  float logit[kWidth];
  int32_t kept[kWidth];
  store(logit, logits);
  memcpy(kept, &keep, sizeof kept);
  for (int i = 0; i < kWidth; ++i) {
    to[found] = logit[i];
    ids[found] = int32_t(first) + i;
    found -= kept[i];
  }
  return found;
}

template <class T>
int64_t collect_from(const T* logits, int64_t first, int64_t count, float low, float high,
                     float* to, int32_t* ids, int64_t found) {
  for (int64_t i = 0; i < count; i += kWidth) {
    const Floats logit = load(logits + i);
    const Ints keep = (logit >= splat(low)) & (logit <= splat(high));
    found = append(logit, keep, first + i, to, ids, found);
  }
  return found;
}

int64_t collect(const Row& row, int64_t begin, int64_t count, float low, float high, float* logits,
                int32_t* ids, int64_t found) {
  return with_dtype(row.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (count == kCell && !holds_forbidden(row, begin, count)) {
      const T* const from = static_cast<const T*>(row.logits) + begin;
      return collect_from(from, begin, kCell, low, high, logits, ids, found);
    }
    alignas(64) float buffer[kCell];
    const int64_t padded = copy_padded<T>(row, begin, count, buffer);
    return collect_from(buffer, begin, padded, low, high, logits, ids, found);
  });
}

// Sums a padded chunk of weights into its cells.
template <class T>
EDLM_HD void add_weights(const T* weights, int64_t count, const RowSums& sums) {
  float* cell_sum = sums.cell_sum;
  Floats least{};
  double sum = 0;
  for (int64_t begin = 0; begin < count; begin += kCell) {
    const int64_t end = begin + kCell < count ? begin + kCell : count;
    Floats even{}, odd{};
    int64_t i = begin;
    for (; i + 2 * kWidth <= end; i += 2 * kWidth) {
      __builtin_prefetch(weights + i + kChunk);
      if (sizeof(T) == 4) __builtin_prefetch(weights + i + kChunk + kWidth);
      Floats a, b;
      load_two(weights + i, &a, &b);
      least = min(min(a, b), least);
      even += a;
      odd += b;
    }
    if (i < end) {
      const Floats a = load(weights + i);
      least = min(a, least);
      even += a;
    }
    *cell_sum = add_lanes(even + odd);
    sum += *cell_sum++;
  }
  *sums.chunk_sum = min_lanes(least) < 0 ? __builtin_nan("") : sum;
  *sums.chunk_reference = 0;
}

void sum_weights(const Row& row, const RowSums& sums) {
  with_dtype(row.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    alignas(64) float buffer[kChunk];
    for (int64_t chunk = 0, begin = 0; begin < row.vocab; ++chunk, begin += kChunk) {
      const int64_t count = begin + kChunk < row.vocab ? kChunk : row.vocab - begin;
      const RowSums at = sums.from_chunk(chunk);
      if (count % kPad == 0) {
        add_weights(static_cast<const T*>(row.logits) + begin, count, at);
      } else {
        add_weights(buffer, copy_padded<T>(row, begin, count, buffer, 0), at);
      }
    }
  });
}

void weight_cell(const Row& row, int64_t begin, int64_t count, float, CellWeights* cell) {
  cell->count = count;
  with_dtype(row.dtype, [&](auto type) {
    copy_padded<typename decltype(type)::type>(row, begin, count, cell->weight, 0);
  });
  cell->add_groups();
}

}  // namespace

extern const RowPass kRowPass;
const RowPass kRowPass = {EDLM_ISA_NAME,
                          sum<RowPart::kCells>,
                          sum<RowPart::kChunks>,
                          sum<RowPart::kStatistics>,
                          sum<RowPart::kMaxima>,
                          weights,
                          cell,
                          collect,
                          sum_weights,
                          weight_cell};

}  // namespace edlm::cpu::EDLM_ISA
