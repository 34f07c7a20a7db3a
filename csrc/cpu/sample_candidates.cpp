// sample_candidates on the CPU: one vectorised read of the row, then K walks down its sums.
#include "edlm/sample_candidates.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "row_pass.h"

namespace edlm::cpu {
namespace {

// Draws from one row. The last cell's weights are kept: draws of a peaked row share their cell.
class RowSampler {
 public:
  RowSampler(const Row& row, const RowScratch& scratch) : row_(row), scratch_(scratch) {}

  int64_t draw(double u) {
    const Pick chunk =
        pick_from_sums(scratch_.prefix_sum(), scratch_.chunk_weight(), scratch_.chunks(), u);
    const int64_t first_cell = chunk.index * kCellsPerChunk;
    const int64_t cells = std::min(kCellsPerChunk, ceil_div(row_.vocab, kCell) - first_cell);
    const Pick cell = pick(scratch_.cell_sum() + first_cell, cells,
                           scratch_.chunk_sum()[chunk.index], chunk.share);
    const int64_t begin = (first_cell + cell.index) * kCell;
    if (begin != begin_) {
      begin_ = begin;
      row_pass().cell(row_, begin, std::min(kCell, row_.vocab - begin),
                      scratch_.chunk_reference()[chunk.index], &weights_);
    }
    return begin + weights_.token(cell.share);
  }

 private:
  const Row& row_;
  const RowScratch& scratch_;
  int64_t begin_ = -1;
  CellWeights weights_;
};

// The tokens of the nucleus in token order.
struct Nucleus {
  std::vector<int64_t> ids;
  std::vector<double> weights;      // relative to the row's reference
  std::vector<double> prefix_sums;  // inclusive

  double sum() const { return prefix_sums.back(); }

  int64_t draw(double u) const {
    const auto beyond = std::upper_bound(prefix_sums.begin(), prefix_sums.end(), u * sum());
    return ids[std::min<size_t>(beyond - prefix_sums.begin(), ids.size() - 1)];
  }
};

// The largest weight such that the weights at or above it reach `wanted`. Only the weights of one
// bucket are sorted: buckets are the upper bits of a positive float, which rise with it.
double nucleus_threshold(const std::vector<double>& weights, double wanted) {
  const auto bucket_of = [](double weight) { return int64_t(to_bits(float(weight)) >> 18); };
  const auto [least, most] = std::minmax_element(weights.begin(), weights.end());
  const int64_t first = bucket_of(*least);
  std::vector<double> mass(bucket_of(*most) - first + 1);
  for (const double weight : weights) mass[bucket_of(weight) - first] += weight;
  int64_t bucket = int64_t(mass.size()) - 1;
  double above = 0;
  while (bucket > 0 && above + mass[bucket] < wanted) above += mass[bucket--];

  std::vector<double> sorted;
  for (const double weight : weights) {
    if (bucket_of(weight) - first == bucket) sorted.push_back(weight);
  }
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  for (const double weight : sorted) {
    above += weight;
    if (above >= wanted) return weight;
  }
  return sorted.back();
}

// The smallest set of most likely tokens whose probabilities reach top_p, with all tokens tied
// with its last one. Tokens below (1 - top_p) / V hold less than 1 - top_p together, so they are
// outside and need no sorting.
void find_nucleus(const Row& row, const RowTotal& total, float top_p, Nucleus& nucleus) {
  nucleus.ids.clear();
  nucleus.weights.clear();
  const double floor = (1.0 - double(top_p)) * total.sum / double(row.vocab);
  alignas(64) float weights[kCell];
  for (int64_t begin = 0; begin < row.vocab; begin += kCell) {
    const int64_t count = std::min(kCell, row.vocab - begin);
    row_pass().weights(row, begin, count, total.reference, weights);
    for (int64_t i = 0; i < count; ++i) {
      if (!(weights[i] > 0 && weights[i] >= floor)) continue;
      nucleus.ids.push_back(begin + i);
      nucleus.weights.push_back(weights[i]);
    }
  }
  const double threshold = nucleus_threshold(nucleus.weights, double(top_p) * total.sum);
  size_t kept = 0;
  double sum = 0;
  nucleus.prefix_sums.clear();
  for (size_t i = 0; i < nucleus.ids.size(); ++i) {
    if (nucleus.weights[i] < threshold) continue;
    nucleus.ids[kept++] = nucleus.ids[i];
    nucleus.prefix_sums.push_back(sum += nucleus.weights[i]);
  }
  nucleus.ids.resize(kept);
}

}  // namespace

Status sample_candidates(const SampleCandidatesArgs& args, int64_t begin, int64_t end) {
  const float inv_temperature = 1.0f / args.temperature;
  RowScratch scratch(args.vocab);
  Nucleus nucleus;
  for (int64_t r = begin; r < end; ++r) {
    const Row row = {row_at(args.logits, args.dtype, r, args.row_stride), args.dtype, args.vocab,
                     args.forbidden_id, inv_temperature};
    row_pass().sum(row, scratch.sums());
    const RowTotal total = scratch.total(inv_temperature);
    if (std::isnan(total.sum)) return {Code::kNotANumber, r};
    if (!(total.sum > 0)) return {Code::kNothingLeft, r};

    double log_z = total.log_z;
    if (args.top_p < 1) {
      find_nucleus(row, total, args.top_p, nucleus);
      log_z = std::log(nucleus.sum());
    }
    RowSampler sampler(row, scratch);
    for (int64_t j = 0; j < args.num_candidates; ++j) {
      const double u = candidate_uniform(args.keys[r], j);
      const int64_t token = args.top_p < 1 ? nucleus.draw(u) : sampler.draw(u);
      const double gap = double(logit_at(row, token)) - double(total.reference);
      args.tokens[r * args.num_candidates + j] = token;
      args.log_q[r * args.num_candidates + j] =
          float(std::min(0.0, gap * double(inv_temperature) - log_z));
    }
  }
  return {};
}

}  // namespace edlm::cpu
