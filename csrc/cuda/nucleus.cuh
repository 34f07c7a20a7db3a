// Where the nucleus of a row ends: a radix search over the logits, one read of the row for each
// digit.
#pragma once

#include "row_pass.cuh"

namespace edlm::cuda {

inline constexpr uint32_t kBins = 1 << 11;

// What a read leaves of the tokens that share a digit. Masses are integers, so that the order in
// which tokens come does not matter.
struct NucleusBins {
  SharedPtr<uint64_t> mass;             // [kBins]
  SharedPtr<uint32_t> lowest, highest;  // [kBins], logits by rank_of
};

// Doubles of shared memory.
inline constexpr int64_t kNucleusSize = 2 * kBins;

EDLM_DEVICE NucleusBins bins_at(SharedPtr<double> memory) {
  const SharedPtr<uint32_t> logits = SharedPtr<uint32_t>(memory + kBins);
  return {SharedPtr<uint64_t>(memory), logits, logits + kBins};
}

// A number that rises with the logit.
EDLM_DEVICE uint32_t rank_of(float logit) {
  const uint32_t bits = to_bits(logit);
  return bits >> 31 ? ~bits : bits | 0x80000000u;
}
EDLM_DEVICE float logit_of(uint32_t rank) {
  return from_bits(rank >> 31 ? rank & 0x7fffffffu : ~rank);
}

// Which bin a logit belongs to; a likelier one to a higher bin. The first digit goes down from the
// row's largest logit in steps of T / 64, the others are of rank_of,
// `range` numbers from `base` on.
struct Digit {
  bool first;
  float top, steps;  // the largest logit, and 64 / T
  uint32_t base, range;
  int shift;

  // kBins where it has none.
  EDLM_DEVICE uint32_t bin(float logit) const {
    if (!first) {
      const uint32_t place = rank_of(logit) - base;
      return place <= range ? place >> shift : kBins;
    }
    // What is 32 T away adds up to less than any top_p leaves out.
    const float down = (top - logit) * steps;
    return down < kBins ? kBins - 1 - uint32_t(down) : kBins;
  }
};

template <class T>
EDLM_DEVICE void count_chunk(const Row<T, true>& row, int chunk, const ChunkScale& scale,
                             float unit, const Digit& digit, const NucleusBins& bins) {
  Bytes16 spans[kSpans<T>];
  load_chunk(row, chunk * kWarpChunk, spans);
  EDLM_UNROLL(8)  // all of them, for what is in registers has no index
  for (int s = 0; s < kSpans<T>; ++s) {
    float logits[kSpan<T>];
    unpack(spans[s], logits, T{});
    for (int i = 0; i < kSpan<T>; ++i) {
      const uint32_t bin = digit.bin(logits[i]);
      if (bin == kBins) continue;
      const float weight = scale.weight_as<false>(logits[i]);
      atomic_add(bins.mass, int(bin), uint64_t(weight * unit));
      atomic_min(bins.lowest, int(bin), rank_of(logits[i]));
      atomic_max(bins.highest, int(bin), rank_of(logits[i]));
    }
  }
}

// The most likely bin down to which the mass reaches `wanted`, `above` that of the bins over it;
// -1 where all bins fall short.
EDLM_DEVICE int find_bin(const NucleusBins& bins, double wanted, uint64_t& above) {
  for (int begin = 0; begin < int(kBins); begin += kLanes) {
    const int bin = int(kBins) - 1 - begin - lane();
    const uint64_t mass = bins.mass[bin];
    const uint64_t reached = above + warp_prefix_sum(mass);
    const uint32_t enough = ballot(mass > 0 && double(reached) >= wanted);
    if (enough) {
      above = shuffle(reached - mass, lowest_bit(enough));
      return int(kBins) - 1 - begin - lowest_bit(enough);
    }
    above = shuffle(reached, kLanes - 1);
  }
  return -1;
}

// The smallest logit of the nucleus: the largest such that the tokens at or above it hold top_p of
// the row. The whole block's work, `total` being the row's.
//
// The first digit and 11 bits of rank nearly always leave tokens of one logit. Where they do not,
// as where logits lie close together compared with T, every further read brings 11 bits more.
template <int kWarps, class T>
EDLM_DEVICE float nucleus_floor(const Row<T, true>& row, const RowTotal& total, double top_p,
                                const NucleusBins& bins) {
  if (!(total.sum > 0)) return -kInf;
  Digit digit = {true, total.reference, row.inv_temperature * 64, 0, 0, 0};
  const float unit = float(uint64_t{1} << (62 - highest_bit(uint32_t(row.vocab))));
  const double wanted = top_p * total.sum * double(unit);
  const ChunkScale scale(total.reference, row.scale);
  uint64_t above = 0;
  while (true) {
    for (int i = thread_index(); i < int(kBins); i += Team<kWarps>::kThreads) {
      bins.mass[i] = 0;
      bins.lowest[i] = ~0u;
      bins.highest[i] = 0;
    }
    sync_block();
    for (int c = Team<kWarps>::warp(); c < chunks_of(row.vocab); c += kWarps) {
      count_chunk(row, c, scale, unit, digit, bins);
    }
    sync_block();
    const int bin = find_bin(bins, wanted, above);
    if (bin < 0) return -kInf;
    const uint32_t low = bins.lowest[bin], range = bins.highest[bin] - low;
    if (range == 0) return logit_of(low);
    const int shift = highest_bit(range) > 10 ? highest_bit(range) - 10 : 0;
    digit = {false, 0, 0, low, range, shift};
    sync_block();
  }
}

}  // namespace edlm::cuda
