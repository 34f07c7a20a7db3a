// sample_candidates on the CPU: one vectorised read of the row, then K walks down its sums.
#include "edlm/sample_candidates.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "row_sampler.h"

namespace edlm::cpu {
namespace {

struct Candidate {
  int64_t id;
  float logit;
  double weight;  // relative to the row's reference
};

// The tokens of the nucleus in token order.
struct Nucleus {
  std::vector<Candidate> tokens;
  std::vector<double> prefix_sums;  // inclusive

  double sum() const { return prefix_sums.back(); }

  int64_t draw(double u) const {
    const auto beyond = std::upper_bound(prefix_sums.begin(), prefix_sums.end(), u * sum());
    return tokens[std::min<size_t>(beyond - prefix_sums.begin(), tokens.size() - 1)].id;
  }
};

// The largest logit such that the tokens at or above it weigh `wanted`. Only one bucket is sorted:
// buckets go down from the largest logit in steps of T / 32.
float nucleus_threshold(const std::vector<Candidate>& tokens, double wanted,
                        float inv_temperature) {
  float top = tokens.front().logit;
  for (const Candidate& token : tokens) top = std::max(top, token.logit);
  // Monotone in the logit, equal logits share a bucket, and none of positive weight is 150 T away.
  const auto bucket_of = [&](const Candidate& token) {
    const double steps = (double(top) - double(token.logit)) * double(inv_temperature) * 32;
    return size_t(std::min(steps, 150.0 * 32));
  };
  std::vector<double> mass;
  for (const Candidate& token : tokens) {
    const size_t bucket = bucket_of(token);
    if (bucket >= mass.size()) mass.resize(bucket + 1);
    mass[bucket] += token.weight;
  }
  size_t bucket = 0;
  double above = 0;
  while (bucket + 1 < mass.size() && above + mass[bucket] < wanted) above += mass[bucket++];

  // By logits, not by weights: at a high temperature many logits round to one weight.
  std::vector<Candidate> sorted;
  for (const Candidate& token : tokens) {
    if (bucket_of(token) == bucket) sorted.push_back(token);
  }
  std::sort(sorted.begin(), sorted.end(),
            [](const Candidate& a, const Candidate& b) { return a.logit > b.logit; });
  for (const Candidate& token : sorted) {
    above += token.weight;
    if (above >= wanted) return token.logit;
  }
  return sorted.back().logit;
}

// The smallest set of most likely tokens whose probabilities reach top_p, with all tokens tied
// with its last one. Tokens below (1 - top_p) / V hold less than 1 - top_p together, so they are
// outside and need no sorting.
void find_nucleus(const Row& row, const RowTotal& total, float top_p, Nucleus& nucleus) {
  std::vector<Candidate>& tokens = nucleus.tokens;
  tokens.clear();
  // The margin is for the rounding of the weights: where all are alike, the best must stay.
  const double floor = 0.999 * (1.0 - double(top_p)) * total.sum / double(row.vocab);
  alignas(64) float weights[kCell];
  for (int64_t begin = 0; begin < row.vocab; begin += kCell) {
    const int64_t count = std::min(kCell, row.vocab - begin);
    row_pass().weights(row, begin, count, total.reference, weights);
    for (int64_t i = 0; i < count; ++i) {
      if (!(weights[i] > 0 && weights[i] >= floor)) continue;
      tokens.push_back({begin + i, logit_at(row, begin + i), double(weights[i])});
    }
  }
  const float threshold = nucleus_threshold(tokens, double(top_p) * total.sum, row.inv_temperature);
  std::erase_if(tokens, [&](const Candidate& token) { return token.logit < threshold; });
  double sum = 0;
  nucleus.prefix_sums.clear();
  for (const Candidate& token : tokens) nucleus.prefix_sums.push_back(sum += token.weight);
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
    RowSampler sampler(row, scratch, row_pass().cell);
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
