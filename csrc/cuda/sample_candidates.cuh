// sample_candidates on CUDA: one read of the row, then K walks down its sums.
#pragma once

#include "edlm/sample_candidates.h"
#include "nucleus.cuh"
#include "row_ring.cuh"

namespace edlm::cuda {

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
  const ChunkScale scale(sums.chunk_reference[chunk.index], row.scale);
  const Pick token = warp_pick(scale.weight(logit), cell.share);
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
  const ChunkScale scale(sums.chunk_reference[chunk.index], row.scale);
  const Pick token = lane_pick(up_to(row.vocab - first), cell.share,
                               [&](int i) { return scale.weight(row.logit(first + i)); });
  return {first + int(token.index), row.logit(first + int(token.index))};
}

// `kSplit`: sum_rows_kernel has read the row, into `workspace`.
template <class T, int kWarps, bool kNucleus, bool kSplit>
EDLM_KERNEL(Team<kWarps>::kThreads, kNucleus ? 1 : kBlocks<T>)
sample_candidates_kernel(SampleCandidatesArgs args, double* workspace) {
  const int64_t r = Team<kWarps>::row();
  if (r >= args.rows) return;
  const int64_t count = args.num_candidates;
  const int warp = Team<kWarps>::warp();
  // A warp has every kWarps-th candidate, a lane the uniform of every 32nd of those. Made here,
  // where memory is waited for anyway.
  const auto uniform_of = [&](int64_t j) {
    return j < count ? candidate_uniform(args.keys[r], j) : 0.0;
  };
  double u = uniform_of(warp + lane() * kWarps);

  Row<T, kNucleus> row = row_of<T, kNucleus>(args, r);
  const RowSums sums = team_sums<kWarps, kSplit>(row.vocab, workspace);
  if constexpr (kSplit) {
    wait_for_previous_kernel();
  } else if constexpr (kNucleus) {
    read_row<kWarps>(row, sums);
  } else {
    read_long_row<kWarps>(row, sums);
  }
  RowTotal total = row_total<kWarps>(row, sums);
  if constexpr (kNucleus) {
    const int used = sums_size(row.vocab) + (kSplit ? 0 : read_size(row.vocab));
    row.floor = nucleus_floor<kWarps>(row, total, args.top_p, bins_at(dynamic_shared() + used));
    read_row<kWarps>(row, sums);
    total = row_total<kWarps>(row, sums);
  }

  const auto write = [&](int64_t j, const Draw& drawn) {
    const bool good = total.sum > 0;
    args.tokens[r * count + j] = good ? drawn.token : -1;
    args.log_q[r * count + j] = good ? log_prob(row, drawn.logit, total) : kNaN;
  };
  if constexpr (kWarps == 1) {
    for (int64_t j = lane(); j < count; j += kLanes) {
      if (j >= kLanes) u = uniform_of(j);
      write(j, lane_draw(row, sums, u));
    }
  } else {
    int holder = 0;
    for (int64_t j = warp; j < count; j += kWarps, ++holder) {
      if (holder == kLanes) {
        holder = 0;
        u = uniform_of(j + lane() * kWarps);
      }
      const Draw drawn = warp_draw(row, sums, total, shuffle(u, holder));
      if (lane() == 0) write(j, drawn);
    }
  }
}

}  // namespace edlm::cuda
