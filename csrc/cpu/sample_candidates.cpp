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
  RowSampler(const Row& row, const RowScratch& scratch, double total)
      : row_(row), scratch_(scratch), total_(total) {}

  int64_t draw(double u) {
    const Pick chunk = pick(scratch_.chunk_weight(), scratch_.chunks(), total_, u);
    const int64_t first_cell = chunk.index * kCellsPerChunk;
    const int64_t cells = std::min(kCellsPerChunk, ceil_div(row_.vocab, kCell) - first_cell);
    const Pick cell = pick(scratch_.cell_sum() + first_cell, cells,
                           scratch_.chunk_sum()[chunk.index], chunk.share);
    const int64_t begin = (first_cell + cell.index) * kCell;
    if (begin != begin_) {
      begin_ = begin;
      weights_.count = std::min(kCell, row_.vocab - begin);
      row_pass().weights(row_, begin, weights_.count, scratch_.chunk_reference()[chunk.index],
                         weights_.weight);
      weights_.add_groups();
    }
    return begin + weights_.token(cell.share);
  }

 private:
  const Row& row_;
  const RowScratch& scratch_;
  const double total_;
  int64_t begin_ = -1;
  CellWeights weights_;
};

// The tokens of the nucleus in token order, with weights relative to the row's reference.
struct Nucleus {
  std::vector<int64_t> ids;
  std::vector<double> weights;
  double sum = 0;

  int64_t draw(double u) const {
    return ids[pick(weights.data(), int64_t(weights.size()), sum, u).index];
  }
};

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
  std::vector<double> sorted = nucleus.weights;
  std::sort(sorted.begin(), sorted.end(), std::greater<>());
  double threshold = sorted.back(), reached = 0;
  for (const double weight : sorted) {
    reached += weight;
    if (reached >= double(top_p) * total.sum) {
      threshold = weight;
      break;
    }
  }
  size_t kept = 0;
  nucleus.sum = 0;
  for (size_t i = 0; i < nucleus.ids.size(); ++i) {
    if (nucleus.weights[i] < threshold) continue;
    nucleus.ids[kept] = nucleus.ids[i];
    nucleus.sum += nucleus.weights[kept] = nucleus.weights[i];
    ++kept;
  }
  nucleus.ids.resize(kept);
  nucleus.weights.resize(kept);
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
      log_z = std::log(nucleus.sum);
    }
    RowSampler sampler(row, scratch, total.sum);
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
