// One row pass. The build compiles this file once per instruction set, with EDLM_ISA naming it and
// the compiler flags of that set; EDLM_ISA_WIDTH is its number of floats in a register.
#include "floats.h"

namespace edlm::cpu::EDLM_ISA {
namespace {

constexpr float kMaxGap = 20;
// A moment's rounding grows with the exponents it sums.
constexpr float kMaxMomentGap = 1;

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

// Calls op(logits, padded count) for a part of a row, up to a cell: its own logits, or a copy.
template <class Op>
EDLM_HD auto with_cell(const Row& row, int64_t begin, int64_t count, const Op& op) {
  return with_dtype(row.dtype, [&](auto type) {
    using T = typename decltype(type)::type;
    if (count % kPad == 0 && !holds_forbidden(row, begin, count)) {
      return op(static_cast<const T*>(row.logits) + begin, count);
    }
    alignas(64) float buffer[kCell];
    return op(static_cast<const float*>(buffer), copy_padded<T>(row, begin, count, buffer));
  });
}

template <bool kIds>
int64_t choose(const Row& row, const Choice& choice, float* to, int32_t* ids) {
  const Floats low = splat(choice.low), high = splat(choice.high);
  const Ints lanes = lane_numbers();
  int64_t found = 0;
  for (int64_t begin = 0; begin < row.vocab; begin += choice.step) {
    if (choice.cell_max && choice.cell_max[begin / kCell] < choice.low) continue;
    const int64_t count = begin + choice.run < row.vocab ? choice.run : row.vocab - begin;
    found = with_cell(row, begin, count, [&](const auto* logits, int64_t padded) {
      int64_t end = found;
      for (int64_t i = 0; i < padded; i += kWidth) {
        end += pack<kIds>(load(logits + i), low, high, lanes + int32_t(begin + i), to + end,
                          ids + end);
      }
      return end;
    });
  }
  return found;
}
int64_t choose_any(const Row& row, const Choice& choice, float* to, int32_t* ids) {
  return ids ? choose<true>(row, choice, to, ids) : choose<false>(row, choice, to, ids);
}

template <bool kMass, class T>
EDLM_HD double split_cell(const T* logits, int64_t count, const Split& split, const Scale& scale,
                          float* to, int64_t* found) {
  Floats weight{};
  Ints number{};
  for (int64_t i = 0; i < count; i += kWidth) {
    const Floats logit = load(logits + i);
    *found += pack<false>(logit, splat(split.low), splat(split.high), Ints{}, to + *found, nullptr);
    const Ints above = logit > splat(split.high);
    if constexpr (kMass) {
      weight += above ? exp_scaled(logit - splat(split.reference), scale) : Floats{};
    } else {
      number -= above;
    }
  }
  if constexpr (kMass) return add_lanes(weight);
  int64_t sum = 0;
  for (int i = 0; i < kWidth; ++i) sum += number[i];
  return double(sum);
}

template <bool kMass>
double split(const Row& row, const Split& split, float* to, int64_t* found) {
  const Scale scale = scale_of(row.inv_temperature);
  double above = 0;
  for (int64_t begin = 0; begin < row.vocab; begin += kCell) {
    const int64_t count = begin + kCell < row.vocab ? kCell : row.vocab - begin;
    above += with_cell(row, begin, count, [&](const auto* logits, int64_t padded) {
      return split_cell<kMass>(logits, padded, split, scale, to, found);
    });
  }
  return above;
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

extern const ShortRows kShortRows;
extern const RowPass kRowPass;
const RowPass kRowPass = {EDLM_ISA_NAME,
                          kShortRows,
                          sum<RowPart::kCells>,
                          sum<RowPart::kChunks>,
                          sum<RowPart::kStatistics>,
                          sum<RowPart::kMaxima>,
                          weights,
                          cell,
                          choose_any,
                          split<true>,
                          split<false>,
                          sum_weights,
                          weight_cell};

}  // namespace edlm::cpu::EDLM_ISA
