// Where the nucleus of a row ends: a radix search over the weights, one read of the row for each
// digit.
#pragma once

#include "row_pass.cuh"

namespace edlm::cuda {

inline constexpr int kBins = 1 << 11;

// What a read leaves of the tokens whose weights share a digit. Masses are integers, so that the
// order in which tokens come does not matter.
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

// Weights whose bits lie in [base, base + (bins << shift)), dealt to bins by their upper bits.
struct Digit {
  uint32_t base;
  int shift;
  uint32_t bins;
};

template <class T>
EDLM_DEVICE void count_chunk(const Row<T, true>& row, int64_t chunk, const ChunkScale& scale,
                             float unit, const Digit& digit, const NucleusBins& bins) {
  Bytes16 spans[kSpans<T>];
  load_chunk(row, chunk * kWarpChunk, spans);
  for (int s = 0; s < kSpans<T>; ++s) {
    float logits[kSpan<T>];
    unpack(spans[s], logits, T{});
    for (int i = 0; i < kSpan<T>; ++i) {
      const float weight = scale.weight_as<false>(logits[i]);
      const uint32_t place = to_bits(weight) - digit.base;
      if (to_bits(weight) < digit.base || place >> digit.shift >= digit.bins) continue;
      const int bin = int(place >> digit.shift);
      atomic_add(bins.mass, bin, uint64_t(weight * unit));
      atomic_min(bins.lowest, bin, rank_of(logits[i]));
      atomic_max(bins.highest, bin, rank_of(logits[i]));
    }
  }
}

// The most likely bin down to which the mass reaches `wanted`, `above` that of the bins over it;
// -1 where all bins fall short.
EDLM_DEVICE int find_bin(const NucleusBins& bins, double wanted, uint64_t& above) {
  for (int begin = 0; begin < kBins; begin += kLanes) {
    const int bin = kBins - 1 - begin - lane();
    const uint64_t mass = bins.mass[bin];
    const uint64_t reached = above + warp_prefix_sum(mass);
    const uint32_t enough = ballot(mass > 0 && double(reached) >= wanted);
    if (enough) {
      above = shuffle(reached - mass, lowest_bit(enough));
      return kBins - 1 - begin - lowest_bit(enough);
    }
    above = shuffle(reached, kLanes - 1);
  }
  return -1;
}

// The smallest logit of the nucleus: of the most likely tokens that together reach top_p, with all
// that weigh as much as the last of them. The whole block's work, `total` being the row's.
//
// A digit of 5 bits of mantissa and all of the exponent, then one of 11 bits, nearly always leave
// tokens of one weight; where they do not, the last 7 bits decide.
template <int kWarps, class T>
EDLM_DEVICE float nucleus_floor(const Row<T, true>& row, const RowTotal& total, float top_p,
                                const NucleusBins& bins) {
  if (!(total.sum > 0)) return -kInf;
  // Tokens of weight below 2^-42 add up to less than any top_p leaves out.
  Digit digit = {(127u - 42) << 23, 18, kBins};
  const float unit = float(uint64_t{1} << (62 - highest_bit(uint32_t(row.vocab))));
  const double wanted = double(top_p) * total.sum * double(unit);
  const ChunkScale scale(total.reference, row.scale);
  uint64_t above = 0;
  while (true) {
    for (int i = thread_index(); i < kBins; i += Team<kWarps>::kThreads) {
      bins.mass[i] = 0;
      bins.lowest[i] = ~0u;
      bins.highest[i] = 0;
    }
    sync_block();
    for (int64_t c = Team<kWarps>::warp(); c < chunks_of(row.vocab); c += kWarps) {
      count_chunk(row, c, scale, unit, digit, bins);
    }
    sync_block();
    const int bin = find_bin(bins, wanted, above);
    if (bin < 0) return -kInf;
    const float low = logit_of(bins.lowest[bin]), high = logit_of(bins.highest[bin]);
    if (scale.weight_as<false>(low) == scale.weight_as<false>(high)) return low;
    const uint32_t base = digit.base + (uint32_t(bin) << digit.shift);
    digit = digit.shift == 18 ? Digit{base, 7, 1 << 11} : Digit{base, 0, 1 << 7};
    sync_block();
  }
}

}  // namespace edlm::cuda
