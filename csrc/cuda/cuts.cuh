// The cuts of a row. Every cut keeps the tokens from some logit on; top_k and top_p find it by a
// radix search over the logits, one read of the row for each digit.
#pragma once

#include "edlm/sample_candidates.h"
#include "row_pass.cuh"

namespace edlm::cuda {

inline constexpr uint32_t kBins = 1 << 11;

// What a read leaves of the tokens that share a digit. Masses, or numbers of tokens, are integers,
// so that the order in which tokens come does not matter.
struct Bins {
  SharedPtr<uint64_t> mass;             // [kBins]
  SharedPtr<uint32_t> lowest, highest;  // [kBins], logits by rank_of
};

// Doubles of shared memory.
inline constexpr int64_t kBinsSize = 2 * kBins;

EDLM_DEVICE Bins bins_at(SharedPtr<double> memory) {
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

// Which bin a logit belongs to; a likelier one to a higher bin. The first digit of a mass goes down
// from the row's largest logit in steps of T / 64, the others are of rank_of, `range` numbers from
// `base` on.
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

// The widest digit of `range` ranks from `base` on.
EDLM_DEVICE Digit digit_of(uint32_t base, uint32_t range) {
  return {false, 0, 0, base, range, highest_bit(range | 1) > 10 ? highest_bit(range) - 10 : 0};
}

template <bool kMass, class T>
EDLM_DEVICE void count_chunk(const Row<T, true>& row, int chunk, const ChunkScale& scale,
                             float unit, const Digit& digit, const Bins& bins) {
  Bytes16 spans[kSpans<T>];
  load_chunk(row, chunk * kWarpChunk, spans);
  EDLM_UNROLL(8)  // all of them, for what is in registers has no index
  for (int s = 0; s < kSpans<T>; ++s) {
    float logits[kSpan<T>];
    unpack(spans[s], logits, T{});
    for (int i = 0; i < kSpan<T>; ++i) {
      const uint32_t bin = digit.bin(logits[i]);
      if (bin == kBins) continue;
      atomic_add(bins.mass, int(bin),
                 kMass ? uint64_t(scale.weight_as<false>(logits[i]) * unit) : 1);
      atomic_min(bins.lowest, int(bin), rank_of(logits[i]));
      atomic_max(bins.highest, int(bin), rank_of(logits[i]));
    }
  }
}

// The most likely bin down to which the mass reaches `wanted`, `above` that of the bins over it;
// -1 where all bins fall short.
EDLM_DEVICE int find_bin(const Bins& bins, double wanted, uint64_t& above) {
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

// The largest logit such that the tokens at or above it are `wanted` or more, or with kMass hold so
// much of what exp((logit - reference) / T) adds up to; -inf where all fall short. The whole
// block's work; `total` is the row's.
//
// Of a mass the first digit and 11 bits of rank nearly always leave tokens of one logit. Where they
// do not, as where logits lie close together compared with T, every further read brings 11 bits
// more. Chunks whose largest logit is below all bins are passed over.
template <bool kMass, int kWarps, class T, class Sums>
EDLM_DEVICE float floor_reaching(double wanted, const Row<T, true>& row, const Sums& sums,
                                 const RowTotal& total, const Bins& bins) {
  const uint32_t least = rank_of(-kInf) + 1;
  Digit digit = {true, total.reference, row.inv_temperature * 64, 0, 0, 0};
  if (!kMass) digit = digit_of(least, rank_of(total.reference) - least);
  const float unit = float(uint64_t{1} << (62 - highest_bit(uint32_t(row.vocab))));
  if (kMass) wanted *= double(unit);
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
      if (rank_of(sums.chunk_reference[c]) < digit.base) continue;
      count_chunk<kMass>(row, c, scale, unit, digit, bins);
    }
    sync_block();
    const int bin = find_bin(bins, wanted, above);
    if (bin < 0) return -kInf;
    const uint32_t low = bins.lowest[bin], range = bins.highest[bin] - low;
    if (range == 0) return logit_of(low);
    digit = digit_of(low, range);
    sync_block();
  }
}

// The least float from `value` on.
EDLM_DEVICE float least_float(double value) {
  const float rounded = float(value);
  return double(rounded) < value ? logit_of(rank_of(rounded) + 1) : rounded;
}

// Cuts a row whose sums are there as sample_candidates.h says, and sums what is left. The whole
// block's work.
template <int kWarps, class T, class Sums>
EDLM_DEVICE void cut_row(Row<T, true>& row, const Sums& sums, RowTotal& total,
                         const SampleCandidatesArgs& args, const Bins& bins) {
  if (!(total.sum > 0)) return;
  float least = -kInf;
  if (args.min_p > 0) {
    least = least_float(double(total.reference) + log(args.min_p) / double(row.inv_temperature));
  }
  if (args.top_k > 0 && args.top_k < row.vocab) {
    row.floor = floor_reaching<false, kWarps>(double(args.top_k), row, sums, total, bins);
    if (args.top_p < 1) {
      read_row<kWarps>(row, sums);
      total = row_total<kWarps>(row, sums);
    }
  }
  if (args.top_p < 1) {
    const float floor =
        floor_reaching<true, kWarps>(args.top_p * total.sum, row, sums, total, bins);
    row.floor = max_of(row.floor, floor);
  }
  row.floor = max_of(row.floor, least);
  read_row<kWarps>(row, sums);
  total = row_total<kWarps>(row, sums);
}

}  // namespace edlm::cuda
