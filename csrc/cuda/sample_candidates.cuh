// sample_candidates on CUDA: one read of the row, then K walks down its sums, one warp each.
#pragma once

#include "edlm/sample_candidates.h"
#include "row_pass.cuh"

namespace edlm::cuda {

// Low bits of a float that are 0 in every value of the dtype.
template <class T>
inline constexpr int kUnusedBits = 0;
template <>
inline constexpr int kUnusedBits<BFloat16> = 16;
template <>
inline constexpr int kUnusedBits<Float16> = 13;

// A number that rises with the logit, from one value of the dtype to the next by 1.
template <class T>
EDLM_DEVICE uint32_t rank_of(float logit) {
  const uint32_t bits = to_bits(logit);
  return (bits >> 31 ? ~bits : bits | 0x80000000u) >> kUnusedBits<T>;
}
template <class T>
EDLM_DEVICE float logit_at(uint32_t rank) {
  constexpr uint32_t kUnused = ~(~0u << kUnusedBits<T>);
  const uint32_t bits = rank << kUnusedBits<T>;
  return from_bits(bits >> 31 ? bits & 0x7fffffffu : ~(bits | kUnused));
}

// Finds the smallest logit of the nucleus: the largest value such that the tokens at or above it
// hold top_p of the row. Bisection over the values of the dtype: 34 passes over an fp32 row at
// most.
template <class T>
class NucleusSearch {
 public:
  // After a pass whose tokens reach down to `floor`: sets the floor of the next, or returns false
  // where that pass was over the nucleus.
  EDLM_DEVICE bool next(const RowTotal& total, float top_p, float& floor) {
    if (wanted_ < 0) {
      wanted_ = double(top_p) * total.sum;
      too_little_ = rank_of<T>(total.reference) + 1;
      if (!(total.sum > 0)) return false;
    } else if (too_little_ - enough_ == 1) {
      return false;
    } else {
      (total.sum >= wanted_ ? enough_ : too_little_) = middle();
    }
    floor = logit_at<T>(middle());
    return true;
  }

 private:
  // Equal to enough_ once the search is over.
  EDLM_DEVICE uint32_t middle() const { return enough_ + (too_little_ - enough_) / 2; }

  double wanted_ = -1;
  uint32_t enough_ = rank_of<T>(-kInf), too_little_ = 0;
};

struct Draw {
  int64_t token;
  float logit;
};

template <class T>
EDLM_DEVICE Draw draw(const Row<T>& row, const RowSums& sums, const RowTotal& total, double u) {
  const Pick chunk = warp_pick(chunks_of(row.vocab), total.sum, u, [&](int64_t c) {
    return chunk_weight(row, sums, c, total.reference);
  });
  const int64_t first_cell = chunk.index * kLanes;
  const Pick cell = warp_pick(sums.cell_sum[first_cell + lane()], chunk.share);
  const int64_t first = (first_cell + cell.index) * kLanes;
  const float logit = row.logit(first + lane());
  const float weight = row.weight(logit, sums.chunk_reference[chunk.index]);
  const Pick token = warp_pick(weight, cell.share);
  return {first + token.index, shuffle(logit, int(token.index))};
}

// Sums go to `workspace`, or to shared memory where it is null; `summed` says that they are there.
template <class T, int kWarps>
EDLM_KERNEL(Team<kWarps>::kThreads, kBlocks<T>)
sample_candidates_kernel(SampleCandidatesArgs args, double* workspace, bool summed) {
  const int64_t r = Team<kWarps>::row();
  if (r >= args.rows) return;
  Row<T> row = row_of<T>(args, r);
  const RowSums sums = team_sums<kWarps>(args.vocab, true, workspace);
  RowTotal total;
  NucleusSearch<T> search;
  for (bool more = true; more;) {
    if (!summed) sum_row<kWarps>(row, sums);
    total = row_total(row, sums);
    more = args.top_p < 1 && search.next(total, args.top_p, row.floor);
    if (more) Team<kWarps>::sync();
  }
  const bool good = total.sum > 0;
  const double log_z = log(total.sum);
  for (int64_t j = Team<kWarps>::warp(); j < args.num_candidates; j += kWarps) {
    Draw drawn = {-1, 0};
    if (good) drawn = draw(row, sums, total, candidate_uniform(args.keys[r], j));
    if (lane() != 0) continue;
    args.tokens[r * args.num_candidates + j] = drawn.token;
    args.log_q[r * args.num_candidates + j] =
        good ? log_prob(row, drawn.logit, total.reference, log_z) : kNaN;
  }
}

}  // namespace edlm::cuda
