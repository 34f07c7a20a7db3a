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

// NaN counts as -inf.
EDLM_DEVICE float warp_max(float value) {
  // A signed integer that rises with the float, so that one instruction finds it.
  const auto ordered = [](int32_t bits) { return bits ^ (bits >> 31 & 0x7fffffff); };
  const int32_t bits = int32_t(to_bits(max_of(value, -kInf)));
  return from_bits(uint32_t(ordered(warp_max_int(ordered(bits)))));
}

template <class T>
EDLM_DEVICE T warp_prefix_sum(T value) {
  for (int d = 1; d < kLanes; d *= 2) {
    const T below = shuffle_up(value, d);
    value += lane() >= d ? below : T{0};
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
  const double prefix = warp_prefix_sum(weight);
  const double rest = share * shuffle(prefix, kLanes - 1);
  const uint32_t positive = ballot(weight > 0);
  const uint32_t beyond = ballot(weight > 0 && rest < prefix);
  if (!beyond) return {positive ? highest_bit(positive) : 0, 1.0};
  const int chosen = lowest_bit(beyond);
  const double below = shuffle(prefix, chosen ? chosen - 1 : 0);
  const double left = chosen ? rest - below : rest;
  return {chosen, left > 0 ? left * reciprocal(shuffle(weight, chosen)) : 0.0};
}

// The same over weights whose inclusive prefix sums are known, for what is left of a uniform of
// the whole.
EDLM_DEVICE Pick warp_pick_from_sums(SharedPtr<double> prefix_sums, SharedPtr<double> weights,
                                     int count, double rest) {
  int last = 0;
  for (int begin = 0; begin < count; begin += kLanes) {
    const int i = begin + lane();
    const bool positive = i < count && weights[i] > 0;
    const uint32_t beyond = ballot(positive && rest < prefix_sums[i]);
    if (beyond) {
      const int chosen = begin + lowest_bit(beyond);
      const double left = chosen ? rest - prefix_sums[chosen - 1] : rest;
      return {chosen, left > 0 ? left * reciprocal(weights[chosen]) : 0.0};
    }
    const uint32_t there = ballot(positive);
    if (there) last = begin + highest_bit(there);
  }
  return {last, 1.0};
}

// One lane's own over `count` weights, whose sum is the total.
template <class Weight>
EDLM_DEVICE Pick lane_pick(int count, double share, const Weight& weight_of) {
  double total = 0;
  EDLM_UNROLL(4)
  for (int i = 0; i < count; ++i) total += double(weight_of(i));
  const double rest = share * total;
  double prefix = 0, before = 0, whole = 1;
  int64_t index = 0;
  bool found = false;
  EDLM_UNROLL(4)
  for (int i = 0; i < count; ++i) {
    const double weight = double(weight_of(i));
    if (weight > 0 && !found) {
      index = i;
      before = prefix;
      whole = weight;
      found = rest < prefix + weight;
    }
    prefix += weight;
  }
  return {index, found ? (rest - before) * reciprocal(whole) : 1.0};
}

}  // namespace edlm::cuda
