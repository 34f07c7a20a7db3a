// K draws from a row whose sums are there, for every op that draws.
#pragma once

#include "edlm/sample_candidates.h"
#include "row_ring.cuh"

namespace edlm::cuda {

// A token's weight in a chunk of this reference, as the chunk's sums have it.
template <class T, bool kCut>
EDLM_DEVICE auto weight_in(const Row<T, kCut>& row, float reference) {
  return [scale = ChunkScale(reference, row.scale)](float logit) { return scale.weight(logit); };
}

struct Draw {
  int token;
  float logit;
};

// A warp's walk. The chunks' prefix sums are there; those of cells and tokens are made on the way.
template <class Row>
EDLM_DEVICE Draw warp_draw(const Row& row, const RowSums& sums, const RowTotal& total, double u) {
  const Pick chunk =
      warp_pick_from_sums(sums.chunk_prefix, sums.chunk_sum, chunks_of(row.vocab), u * total.sum);
  const int first_cell = int(chunk.index) * kLanes;
  const Pick cell = warp_pick(sums.cell_sum[first_cell + lane()], chunk.share);
  const int first = (first_cell + int(cell.index)) * kLanes;
  const float logit = row.logit(first + lane());
  const auto weight = weight_in(row, sums.chunk_reference[chunk.index]);
  const Pick token = warp_pick(weight(logit), cell.share);
  return {first + int(token.index), shuffle(logit, int(token.index))};
}

// The same walk by one lane, for rows so short that a warp's would take longer than their read.
template <class Row>
EDLM_DEVICE Draw lane_draw(const Row& row, const RowSums& sums, double u) {
  const auto up_to = [](int count) { return count < kLanes ? count : kLanes; };
  const Pick chunk =
      lane_pick(chunks_of(row.vocab), u, [&](int i) { return double(sums.chunk_sum[i]); });
  const int first_cell = int(chunk.index) * kLanes;
  const int cells = up_to((row.vocab + kLanes - 1) / kLanes - first_cell);
  const Pick cell =
      lane_pick(cells, chunk.share, [&](int i) { return float(sums.cell_sum[first_cell + i]); });
  const int first = (first_cell + int(cell.index)) * kLanes;
  const auto weight = weight_in(row, sums.chunk_reference[chunk.index]);
  const Pick token = lane_pick(up_to(row.vocab - first), cell.share,
                               [&](int i) { return weight(row.logit(first + i)); });
  return {first + int(token.index), row.logit(first + int(token.index))};
}

// A warp has every kWarps-th candidate, a lane the uniform of every 32nd of those.
template <class Args>
EDLM_DEVICE double uniform_of(const Args& args, int64_t r, int64_t j) {
  return j < args.num_candidates ? candidate_uniform(args.keys[r], j) : 0.0;
}
// A lane's first. To be made before the row is read, where memory is waited for anyway.
template <int kWarps, class Args>
EDLM_DEVICE double first_uniform(const Args& args, int64_t r) {
  return uniform_of(args, r, Team<kWarps>::warp() + lane() * kWarps);
}

// All candidates of a row by its team; `u` is first_uniform(). A row whose sum is not positive is
// bad.
template <int kWarps, class Row, class Args>
EDLM_DEVICE void draw_candidates(const Args& args, int64_t r, const Row& row, const RowSums& sums,
                                 const RowTotal& total, double u) {
  const int64_t count = args.num_candidates;
  const auto write = [&](int64_t j, const Draw& drawn) {
    const bool good = total.sum > 0;
    args.tokens[r * count + j] = good ? drawn.token : -1;
    args.log_q[r * count + j] = good ? log_prob(row, drawn.logit, total) : kNaN;
  };
  if constexpr (kWarps == 1) {
    for (int64_t j = lane(); j < count; j += kLanes) {
      if (j >= kLanes) u = uniform_of(args, r, j);
      write(j, lane_draw(row, sums, u));
    }
  } else {
    int holder = 0;
    for (int64_t j = Team<kWarps>::warp(); j < count; j += kWarps, ++holder) {
      if (holder == kLanes) {
        holder = 0;
        u = uniform_of(args, r, j + lane() * kWarps);
      }
      const Draw drawn = warp_draw(row, sums, total, shuffle(u, holder));
      if (lane() == 0) write(j, drawn);
    }
  }
}

}  // namespace edlm::cuda
