// The cuts of a row on the CPU.
//
// Every cut keeps the tokens from some logit on, a floor. It is searched by radix: tokens are
// counted, or weighed, in bins of their logits, and the bin in which the count or the weight is
// reached is searched on. Where many tokens could be at the floor, a sample of them first tells
// about where it is, and the row itself whether that is so.
#include "cut_row.h"

#include <algorithm>
#include <bit>
#include <cfloat>
#include <cmath>

namespace edlm::cpu {
namespace {

constexpr int kBinBits = 10;
// Tokens of one bin come one after another: tables that take turns need not wait for each other.
constexpr int64_t kTables = 2;

// The sample: so many tokens in every so many.
constexpr int64_t kSampleRun = 32, kSampleStep = 1024;
constexpr int32_t kSampleBins = 512;
constexpr double kSampleStride = double(kSampleStep) / double(kSampleRun);
// Fewer tokens are searched without one.
constexpr int64_t kManyTokens = 8192;
// Standard deviations of what the sample says.
constexpr double kSampleSigmas = 3;

// A number that rises with the logit, one for both zeros.
inline int32_t rank_of(float logit) {
  const int32_t bits = int32_t(to_bits(logit)), sign = bits >> 31;
  return (bits ^ (sign & 0x7fffffff)) - sign;
}
float logit_of(int32_t rank) {
  return rank < 0 ? -from_bits(uint32_t(-rank)) : from_bits(uint32_t(rank));
}

// Which of up to 2^kBinBits bins a logit from `low` to `high` belongs to.
struct Digit {
  int32_t base;
  uint32_t range;
  int shift;

  Digit(float low, float high)
      : base(rank_of(low)),
        range(uint32_t(rank_of(high)) - uint32_t(base)),
        shift(std::max(0, int(std::bit_width(range)) - kBinBits)) {}

  int64_t bins() const { return int64_t(range >> shift) + 1; }
  uint32_t bin(float logit) const { return (uint32_t(rank_of(logit)) - uint32_t(base)) >> shift; }
  float low(int64_t bin) const { return at(uint32_t(bin) << shift); }
  float high(int64_t bin) const {
    return at(std::min(range, (uint32_t(bin) << shift) + (1u << shift) - 1));
  }
  float at(uint32_t place) const { return logit_of(int32_t(uint32_t(base) + place)); }
};

// The highest bin down to which the mass reaches `wanted`, `above` that of the bins over it; -1
// where all bins fall short.
int64_t bin_reaching(const std::vector<double>& mass, int64_t bins, double wanted, double& above) {
  for (int64_t bin = bins - 1; bin >= 0; --bin) {
    double here = 0;
    for (int64_t t = 0; t < kTables; ++t) here += mass[kTables * bin + t];
    if (above + here >= wanted) return bin;
    above += here;
  }
  return -1;
}

// The least float from `value` on.
float least_float(double value) {
  const float rounded = float(value);
  return double(rounded) < value ? std::nextafter(rounded, FLT_MAX) : rounded;
}

// How many of these logits lie within bounds, and the least of them. In lanes, for the compiler.
int64_t count_between(const float* logits, int64_t size, float low, float high) {
  int32_t found = 0;
  for (int64_t i = 0; i < size; ++i) {
    found += int32_t(logits[i] >= low) & int32_t(logits[i] <= high);
  }
  return found;
}
float least_of(const float* logits, int64_t size) {
  float least[8];
  std::fill_n(least, 8, logits[0]);
  int64_t i = 0;
  for (; i + 8 <= size; i += 8) {
    for (int j = 0; j < 8; ++j) least[j] = logits[i + j] < least[j] ? logits[i + j] : least[j];
  }
  for (; i < size; ++i) least[0] = std::min(least[0], logits[i]);
  return *std::min_element(least, least + 8);
}

// Calls add(i, weights, count) for the tokens from i on, a cell at a time; all weights are 1 unless
// kMass.
template <bool kMass, class Add>
void each_cell(const Row& row, float reference, const Add& add) {
  alignas(64) float weights[kCell];
  std::fill_n(weights, kCell, 1.0f);
  for (int64_t begin = 0; begin < row.vocab; begin += kCell) {
    const int64_t count = std::min(kCell, row.vocab - begin);
    if (kMass) row_pass().weights(row, begin, count, reference, weights);
    add(begin, weights, count);
  }
}

double sum_of_weights(const Row& row, float reference) {
  double sum = 0;
  each_cell<true>(row, reference, [&](int64_t, const float* weights, int64_t count) {
    for (int64_t i = 0; i < count; ++i) sum += double(weights[i]);
  });
  return sum;
}

Row row_of(const TokenList& list, float inv_temperature) {
  return {list.logits.get(), DType::kFloat32, list.count, -1, inv_temperature};
}

}  // namespace

// Leaves the tokens from `low` on.
void CutRow::narrow(float low) {
  TokenList& to = lists_[source_.list == &lists_[0]];
  to.count = row_pass().choose(source_.row, {low, FLT_MAX, source_.cell_max}, to.logits.get(),
                               to.ids.get());
  if (source_.list) {
    for (int64_t i = 0; i < to.count; ++i) to.ids[i] = source_.list->ids[to.ids[i]];
  }
  source_ = {row_of(to, source_.row.inv_temperature), nullptr, &to};
}

// A logit, as large as is easily found, from which on `count` cells have a token and more.
float CutRow::low_of_maxima(int64_t count, float top) {
  const int64_t cells = ceil_div(source_.row.vocab, kCell);
  if (count > cells) return -FLT_MAX;
  const float* const maxima = source_.cell_max;
  const Digit digit(std::max(-FLT_MAX, *std::min_element(maxima, maxima + cells)), top);
  bins_.assign(kTables * digit.bins(), 0.0);
  for (int64_t i = 0; i < cells; ++i) ++bins_[kTables * digit.bin(std::max(-FLT_MAX, maxima[i]))];
  double above = 0;
  return digit.low(bin_reaching(bins_, digit.bins(), double(count), above));
}

// The answer; the search's `least` where the tokens from there on fall short.
template <bool kMass>
float CutRow::floor_reaching(const Search<kMass>& search) {
  const Bounds all = {search.least, search.top}, likely = estimate(search);
  if (likely.low > all.low || likely.high < all.high) {
    const Source before = source_;
    if (const std::optional<float> floor = floor_within(search, likely)) return *floor;
    source_ = before;
  }
  return floor_within(search, all).value_or(search.least);
}

// The answer if it lies within the bounds. Narrows the source to it where that costs nothing.
template <bool kMass>
std::optional<float> CutRow::floor_within(const Search<kMass>& search, const Bounds& bounds) {
  const float inv_temperature = source_.row.inv_temperature;
  auto [low, high] = bounds;
  double above = 0;
  Row part;
  if (high >= search.top) {
    narrow(low);
    part = source_.row;
  } else {
    part_.count = 0;
    const auto split = kMass ? row_pass().split : row_pass().split_count;
    above = split(source_.row, {low, high, search.reference}, part_.logits.get(), &part_.count);
    if (above >= search.wanted) return {};
    part = row_of(part_, inv_temperature);
  }
  while (true) {
    const Digit digit(low, high);
    const float* const logits = static_cast<const float*>(part.logits);
    bins_.assign(kTables * digit.bins(), 0.0);
    each_cell<kMass>(part, search.reference,
                     [&](int64_t begin, const float* weights, int64_t count) {
                       uint32_t bins[kCell];
                       for (int64_t i = 0; i < count; ++i) bins[i] = digit.bin(logits[begin + i]);
                       double* const mass = bins_.data();
                       for (int64_t i = 0; i < count; ++i) {
                         mass[kTables * bins[i] + i % kTables] += double(weights[i]);
                       }
                     });
    const int64_t bin = bin_reaching(bins_, digit.bins(), search.wanted, above);
    if (bin < 0) return {};
    low = digit.low(bin);
    high = digit.high(bin);
    if (digit.shift == 0) return low;
    part_.count = row_pass().choose(part, {low, high}, part_.logits.get(), nullptr);
    part = row_of(part_, inv_temperature);
  }
}

// Bounds between which the answer probably lies; all logits where a sample would say too little, or
// would take longer than the search. A mass is looked at from below, where no token weighs so much
// that it matters whether it is in the sample.
template <bool kMass>
CutRow::Bounds CutRow::estimate(const Search<kMass>& search) {
  const Bounds all = {search.least, search.top};
  if (source_.row.vocab < kManyTokens) return all;
  const Choice sample = {kMass ? -FLT_MAX : search.least, search.top, nullptr, kSampleRun,
                         kSampleStep};
  part_.count = row_pass().choose(source_.row, sample, part_.logits.get(), nullptr);
  const float* const logits = part_.logits.get();
  const int64_t size = part_.count;
  const auto sampled = [&](const Bounds& bounds) {
    return kSampleStride * double(count_between(logits, size, bounds.low, bounds.high));
  };
  if (sampled(all) < kManyTokens) return all;

  const float inv_temperature = source_.row.inv_temperature;
  // Bins go down from the largest logit evenly; the last is for what lies below.
  const float span = std::min(32 / inv_temperature, search.top - least_of(logits, size));
  const float steps = float(kSampleBins - 1) / span;
  if (!(span > 0 && steps < FLT_MAX)) return all;
  bins_.assign(2 * (kSampleBins + 1), 0.0);  // of each the sum of weights, and of their squares
  each_cell<kMass>(row_of(part_, inv_temperature), search.reference,
                   [&](int64_t begin, const float* weights, int64_t count) {
                     int32_t bins[kCell];
                     for (int64_t i = 0; i < count; ++i) {
                       const float down = (search.top - logits[begin + i]) * steps;
                       bins[i] = int32_t(down < float(kSampleBins) ? down : float(kSampleBins));
                     }
                     double* const sums = bins_.data();
                     for (int64_t i = 0; i < count; ++i) {
                       const double weight = double(weights[i]);
                       sums[2 * bins[i]] += weight;
                       sums[2 * bins[i] + 1] += weight * weight;
                     }
                   });
  // From the side on which the sample counts: the first bin that may hold the answer, and the first
  // that probably does not lie before it.
  double rest = kMass ? search.total - search.wanted : search.wanted, variance = 0;
  int64_t first = -1, last = -1;
  for (int64_t i = 0; i < kSampleBins && last < 0; ++i) {
    const int64_t bin = kMass ? kSampleBins - 1 - i : i;
    rest -= kSampleStride * bins_[2 * bin];
    variance += kSampleStride * kSampleStride * bins_[2 * bin + 1];
    const bool within = rest * rest <= kSampleSigmas * kSampleSigmas * variance;
    if (first < 0 && (within || rest <= 0)) first = bin;
    if (first >= 0 && rest <= 0 && !within) last = bin;
  }
  const auto edge = [&](int64_t bin) { return search.top - float(bin) / steps; };
  const int64_t upper = kMass ? last : first, lower = kMass ? first : last;
  Bounds likely = all;
  if (lower >= 0 && lower + 1 < kSampleBins) likely.low = std::max(all.low, edge(lower + 1));
  // Few tokens from there on are searched without more ado.
  if (upper > 0 && sampled(likely) > kManyTokens) likely.high = edge(upper);
  return sampled(likely) < sampled(all) / 2 ? likely : all;
}

Row CutRow::cut(const Row& row, const RowTotal& total, const float* cell_max, const Cuts& cuts) {
  source_ = {row, cell_max, nullptr};
  const double temperature = 1 / double(row.inv_temperature);
  const float top = *std::max_element(cell_max, cell_max + ceil_div(row.vocab, kCell));
  const bool by_mass = cuts.top_p < 1, by_count = cuts.top_k > 0 && cuts.top_k < row.vocab;
  const float least =
      cuts.min_p > 0
          ? std::max(-FLT_MAX, least_float(double(top) + std::log(cuts.min_p) * temperature))
          : -FLT_MAX;
  float floor = least;
  double sum = total.sum;
  if (by_count) {
    // Where top_p comes next, what min_p would cut has a say in it.
    const float low = std::max(by_mass ? -FLT_MAX : least, low_of_maxima(cuts.top_k, top));
    floor = floor_reaching<false>({double(cuts.top_k), 0, low, top, total.reference});
  }
  if (by_mass) {
    if (by_count) {
      narrow(floor);
      sum = sum_of_weights(source_.row, total.reference);
    }
    // Tokens below (1 - top_p) / V hold less than 1 - top_p together. The margin is for the
    // rounding of the weights: where all are alike, the best must stay.
    const double share = 0.999 * (1 - cuts.top_p) * sum / double(source_.row.vocab);
    const float low = float(std::log(share) * temperature + double(total.reference));
    floor =
        floor_reaching<true>({cuts.top_p * sum, sum, std::max(floor, low), top, total.reference});
  }
  narrow(std::max(floor, least));
  return source_.row;
}

}  // namespace edlm::cpu
