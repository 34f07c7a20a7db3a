// The cuts of a row on the CPU.
//
// Every cut keeps the tokens from some logit on. That logit is searched among the few tokens that
// can matter, by a radix search: tokens are counted, or weighed, in bins of their logits, and the
// bin in which the count or the weight is reached is searched on.
#include "cut_row.h"

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>
#include <functional>

namespace edlm::cpu {
namespace {

constexpr int kBinBits = 10;
// Tokens of one bin come one after another: tables that take turns need not wait for each other.
constexpr int64_t kTables = 2;

// A number that rises with the logit, one for both zeros.
int32_t rank_of(float logit) {
  const int32_t bits = int32_t(to_bits(logit)), sign = bits >> 31;
  return (bits ^ (sign & 0x7fffffff)) - sign;
}
float logit_of(int32_t rank) {
  return rank < 0 ? -from_bits(uint32_t(-rank)) : from_bits(uint32_t(rank));
}

// The least float from `value` on.
float least_float(double value) {
  const float rounded = float(value);
  return double(rounded) < value ? std::nextafter(rounded, FLT_MAX) : rounded;
}

// Calls add(i, weight) for all tokens of a row.
template <class Add>
void each_weight(const Row& row, float reference, const Add& add) {
  alignas(64) float weights[kCell];
  for (int64_t begin = 0; begin < row.vocab; begin += kCell) {
    const int64_t count = std::min(kCell, row.vocab - begin);
    row_pass().weights(row, begin, count, reference, weights);
    for (int64_t i = 0; i < count; ++i) add(begin + i, double(weights[i]));
  }
}

double sum_of_weights(const Row& row, float reference) {
  double sum = 0;
  each_weight(row, reference, [&](int64_t, double weight) { sum += weight; });
  return sum;
}

}  // namespace

void TokenList::collect(const Row& row, const float* cell_max, float low, float high) {
  count_ = 0;
  for (int64_t begin = 0; begin < row.vocab; begin += kCell) {
    if (cell_max && cell_max[begin / kCell] < low) continue;
    count_ = row_pass().collect(row, begin, std::min(kCell, row.vocab - begin), low, high,
                                logits_.data(), ids_.data(), count_);
  }
}

void TokenList::name_by(const TokenList& other) {
  for (int64_t i = 0; i < count_; ++i) ids_[i] = other.ids_[ids_[i]];
}

// The largest logit such that the tokens of `found_` from it on are `wanted` or more, or with kMass
// weigh as much; `low`, below all of them, where there is none.
template <bool kMass>
float CutRow::reached(double wanted, float low, float high, float inv_temperature,
                      float reference) {
  const TokenList* list = &found_;
  double above = 0;  // what the tokens over those of the list hold
  while (true) {
    const Row row = list->row(inv_temperature);
    const auto each = [&](const auto& add) {
      if constexpr (kMass) {
        each_weight(row, reference, add);
      } else {
        for (int64_t i = 0; i < row.vocab; ++i) add(i, 1.0);
      }
    };
    const int32_t base = rank_of(low);
    const uint32_t range = uint32_t(rank_of(high)) - uint32_t(base);
    const int shift = std::max(0, int(std::bit_width(range)) - kBinBits);
    bins_.assign(kTables * ((range >> shift) + 1), 0.0);
    each([&](int64_t i, double mass) {
      const uint32_t bin = (uint32_t(rank_of(list->logit(i))) - uint32_t(base)) >> shift;
      bins_[kTables * bin + i % kTables] += mass;
    });
    int64_t bin = range >> shift;
    for (; bin >= 0; --bin) {
      double mass = 0;
      for (int64_t t = 0; t < kTables; ++t) mass += bins_[kTables * bin + t];
      if (above + mass >= wanted) break;
      above += mass;
    }
    if (bin < 0) return low;
    const uint32_t first = uint32_t(bin) << shift;
    high = logit_of(int32_t(uint32_t(base) + std::min(range, first + (1u << shift) - 1)));
    low = logit_of(int32_t(uint32_t(base) + first));
    if (shift == 0) return low;
    part_.collect(row, nullptr, low, high);
    list = &part_;
  }
}

Row CutRow::cut(const Row& row, const RowTotal& total, const float* cell_max, const Cuts& cuts) {
  const float inv_temperature = row.inv_temperature;
  const int64_t cells = ceil_div(row.vocab, kCell);
  const float top = *std::max_element(cell_max, cell_max + cells);
  const bool by_mass = cuts.top_p < 1, by_count = cuts.top_k > 0;
  const float least =
      cuts.min_p > 0 ? least_float(double(top) + std::log(cuts.min_p) / double(inv_temperature))
                     : -FLT_MAX;

  // No token below it is kept, nor has it a say in what is.
  float low = by_mass && by_count ? -FLT_MAX : std::max(least, -FLT_MAX);
  if (by_count && cuts.top_k <= cells) {
    // So many cells have a token from this logit on.
    maxima_.assign(cell_max, cell_max + cells);
    const auto nth = maxima_.begin() + cuts.top_k - 1;
    std::nth_element(maxima_.begin(), nth, maxima_.end(), std::greater<>());
    low = std::max(low, *nth);
  } else if (by_mass && !by_count) {
    // Tokens below (1 - top_p) / V hold less than 1 - top_p together. The margin is for the
    // rounding of the weights: where all are alike, the best must stay.
    const double share = 0.999 * (1 - cuts.top_p) * total.sum / double(row.vocab);
    low = std::max(low, float(std::log(share) / double(inv_temperature) + double(total.reference)));
  }
  found_.collect(row, cell_max, low, FLT_MAX);

  float floor = low;
  if (by_count && found_.count() > cuts.top_k) {
    floor = reached<false>(double(cuts.top_k), low, top, inv_temperature, total.reference);
  }
  if (by_mass) {
    double sum = total.sum;
    if (by_count) {
      kept_.collect(found_.row(inv_temperature), nullptr, floor, FLT_MAX);
      kept_.name_by(found_);
      std::swap(kept_, found_);
      sum = sum_of_weights(found_.row(inv_temperature), total.reference);
    }
    floor = reached<true>(cuts.top_p * sum, floor, top, inv_temperature, total.reference);
  }
  kept_.collect(found_.row(inv_temperature), nullptr, std::max(floor, least), FLT_MAX);
  kept_.name_by(found_);
  return kept_.row(inv_temperature);
}

}  // namespace edlm::cpu
