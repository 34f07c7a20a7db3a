// What warps do together: reductions, prefix sums, and the inverse CDF over a warp's weights.
#pragma once

#include "device.cuh"
#include "edlm/row_sampling.h"

namespace edlm::cuda {

inline constexpr float kInf = __builtin_inff();
inline constexpr float kNaN = __builtin_nanf("");

// The warps that work on one row: all of a block, or one warp of several rows' block.
template <int kWarps>
struct Team {
  static constexpr int kPerBlock = kWarps == 1 ? 8 : 1;
  static constexpr int kThreads = kWarps * kPerBlock * kLanes;

  EDLM_DEVICE static int place() { return kWarps == 1 ? thread_index() / kLanes : 0; }
  EDLM_DEVICE static int warp() { return kWarps == 1 ? 0 : thread_index() / kLanes; }
  EDLM_DEVICE static int64_t row() { return block_index() * kPerBlock + place(); }
  EDLM_DEVICE static void sync() {
    if constexpr (kWarps == 1) {
      sync_warp();
    } else {
      sync_block();
    }
  }
};

EDLM_DEVICE double warp_sum(double value) {
  for (int d = kLanes / 2; d > 0; d /= 2) value += shuffle_xor(value, d);
  return value;
}

EDLM_DEVICE float warp_max(float value) {
  for (int d = kLanes / 2; d > 0; d /= 2) value = max_of(value, shuffle_xor(value, d));
  return value;
}

EDLM_DEVICE double warp_prefix_sum(double value) {
  for (int d = 1; d < kLanes; d *= 2) {
    const double below = shuffle_up(value, d);
    if (lane() >= d) value += below;
  }
  return value;
}

// The warp's form of pick() in row_sampling.h: the first of `count` weights whose inclusive prefix
// sum exceeds `share * total`, or the last of positive weight. All lanes get the result.
template <class Weight>
EDLM_DEVICE Pick warp_pick(int64_t count, double total, double share, const Weight& weight_of) {
  double rest = share * total;
  Pick last = {0, 1.0};
  for (int64_t begin = 0; begin < count; begin += kLanes) {
    const int64_t i = begin + lane();
    const double weight = i < count ? double(weight_of(i)) : 0.0;
    const double prefix = warp_prefix_sum(weight);
    const double before = shuffle_up(prefix, 1);
    const uint32_t positive = ballot(weight > 0);
    const uint32_t beyond = ballot(weight > 0 && rest < prefix);
    if (beyond) {
      const int chosen = lowest_bit(beyond);
      const double left = shuffle(lane() ? rest - before : rest, chosen);
      const double whole = shuffle(weight, chosen);
      // A prefix sum in tree order may round past the one before it: never below 0.
      return {begin + chosen, left > 0 ? left / whole : 0.0};
    }
    if (positive) last.index = begin + highest_bit(positive);
    rest -= shuffle(prefix, kLanes - 1);
  }
  return last;
}

// The same over one weight per lane, whose sum is the total.
EDLM_DEVICE Pick warp_pick(double weight, double share) {
  return warp_pick(kLanes, warp_sum(weight), share, [&](int64_t) { return weight; });
}

}  // namespace edlm::cuda
