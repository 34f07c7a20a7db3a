// How a row is summed and drawn from, for every backend: partial sums and the inverse CDF over
// them.
//
// A row is cut into chunks of kChunk tokens and those into cells of kCell tokens. One read leaves,
// per chunk, the sum of exp((logit - reference) / T) with a reference near its largest logit, and
// per cell its part of that sum. A draw walks the same cumulative distribution down this hierarchy
// in token order with one uniform: chunk, cell, group, token. Only the chosen cell is read again.
// The sizes below are the CPU's; on CUDA a warp's width sets them (csrc/cuda/row_pass.cuh).
// The walk is in token order, so the cut into chunks and cells does not decide which token a
// uniform means: backends (and an LM head computed piece by piece) agree but for rounding.
//
// Sums are fp32 inside a cell and fp64 above it. At each level the uniform's remainder is a share
// of the level's own total, so a rounding error is relative to the probability it touches and
// never leaks from a likely token to an unlikely neighbour.
#pragma once

#include <cstdint>

#include "edlm/config.h"

namespace edlm {

// Temperatures outside are refused. Inside, a float holds 1 / T with the margins that the
// exponential needs, and where the difference of two logits overflows, the smaller weighs nothing.
inline constexpr double kMinTemperature = 1e-30;
inline constexpr double kMaxTemperature = 1e30;

inline constexpr int64_t kGroup = 16;
inline constexpr int64_t kCell = 128;
inline constexpr int64_t kChunk = 2048;
inline constexpr int64_t kCellsPerChunk = kChunk / kCell;

EDLM_HD constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }

struct Pick {
  int64_t index;
  double share;  // what is left of the uniform, as a share of the picked weight, in [0, 1]
};

// The pick whose walk ended at `index`, after weights that sum to `before`. Rounding overshoot,
// index == count, ends at the last index of positive weight, never at an impossible one.
template <class Weight>
EDLM_HD Pick pick_at(const Weight* weights, int64_t count, int64_t index, double target,
                     double before) {
  if (index < count) return {index, (target - before) / double(weights[index])};
  do {
    --index;
  } while (index > 0 && !(weights[index] > 0));
  return {index, 1.0};
}

// The first index whose inclusive prefix sum exceeds `share * total`, where total = sum of weights.
template <class Weight>
EDLM_HD Pick pick(const Weight* weights, int64_t count, double total, double share) {
  const double target = share * total;
  double prefix = 0, before = 0;
  int64_t index = 0;
  // No early exit: where it comes is random, and a branch that is not foreseen costs more than the
  // sums it saves and keeps draws from overlapping.
  for (int64_t i = 0; i < count; ++i) {
    prefix += double(weights[i]);
    const bool passed = prefix <= target;
    index += passed;
    before = passed ? prefix : before;
  }
  return pick_at(weights, count, index, target, before);
}

// The same where many draws share the inclusive prefix sums of the weights.
EDLM_HD Pick pick_from_sums(const double* prefix_sums, const double* weights, int64_t count,
                            double share) {
  const double target = share * prefix_sums[count - 1];
  int64_t index = 0;
  for (int64_t i = 0; i < count; ++i) index += prefix_sums[i] <= target;
  return pick_at(weights, count, index, target, index > 0 ? prefix_sums[index - 1] : 0.0);
}

// One cell's weights, summed by groups: a walk over 8 groups and 16 tokens instead of 128 tokens.
struct CellWeights {
  int64_t count = 0;
  alignas(64) float weight[kCell];
  double group_sum[kCell / kGroup];
  double sum = 0;

  // Call after the first `count` weights are written; the rest of the last group is set to 0.
  EDLM_HD void add_groups() {
    const int64_t groups = ceil_div(count, kGroup);
    for (int64_t i = count; i < groups * kGroup; ++i) weight[i] = 0;
    sum = 0;
    for (int64_t g = 0; g < groups; ++g) {
      const float* w = weight + g * kGroup;
      double part[4] = {0, 0, 0, 0};
      for (int i = 0; i < kGroup; i += 4) {
        for (int j = 0; j < 4; ++j) part[j] += double(w[i + j]);
      }
      group_sum[g] = (part[0] + part[1]) + (part[2] + part[3]);
      sum += group_sum[g];
    }
  }

  // The token of this cell at `share` of its weight.
  EDLM_HD int64_t token(double share) const {
    const Pick group = pick(group_sum, ceil_div(count, kGroup), sum, share);
    const Pick token =
        pick(weight + group.index * kGroup, kGroup, group_sum[group.index], group.share);
    return group.index * kGroup + token.index;
  }
};

}  // namespace edlm
