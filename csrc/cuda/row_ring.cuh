// The chunks of a row through shared memory, copied there ahead of their turn by the hardware's
// bulk copies (sm_90 and later): what a warp computes no longer waits for what it reads.
#pragma once

#include "row_pass.cuh"

namespace edlm::cuda {

// Chunks of a warp that are on their way or being read.
inline constexpr int kStages = 3;

// Doubles that a chunk's pieces take, and a whole block's ring with its barriers.
template <class T>
inline constexpr int kStageSize = (kWarpChunk * int(sizeof(T)) + 16) / int(sizeof(double));
template <class T, int kWarps>
inline constexpr int kRingSize = kWarps * kStages * (kStageSize<T> + 2);

// Where the ring lies: behind the row's sums, at a multiple of 16 bytes.
EDLM_HD int ring_offset(int vocab) { return (sums_size(vocab) + read_size(vocab) + 1) / 2 * 2; }

// As read_row(), by a ring of kStages chunks in `memory`.
template <int kWarps, class T>
EDLM_DEVICE void read_row_by_copies(const Row<T>& row, const RowSums& sums,
                                    SharedPtr<double> memory) {
  const int warp = Team<kWarps>::warp(), chunks = chunks_of(row.vocab), phase = row.phase();
  const SharedPtr<double> stages = memory + warp * kStages * kStageSize<T>;
  const SharedPtr<double> barriers = memory + kWarps * kStages * kStageSize<T> + warp * kStages * 2;
  const auto inside = [&](int c) { return c < chunks && row.holds_pieces(c * kWarpChunk); };
  const auto start_copy = [&](int c, int stage) {
    if (lane() != 0 || !inside(c)) return;
    bulk_copy(stages + stage * kStageSize<T>, row.pieces(c * kWarpChunk),
              kWarpChunk * int(sizeof(T)) + (phase ? 16 : 0), barriers + stage * 2);
  };
  if (lane() == 0) {
    for (int stage = 0; stage < kStages; ++stage) bulk_start(barriers + stage * 2);
  }
  bulk_started();
  sync_warp();
  // The row's first chunk may be an end of it, and so may its last: those are read as ever.
  const int first = inside(warp) ? warp : warp + kWarps;
  for (int n = 0; n < kStages; ++n) start_copy(first + n * kWarps, n);
  EDLM_UNROLL(1)
  for (int c = warp; c < chunks; c += kWarps) {
    if (!inside(c)) sum_chunk(row, c, sums);
  }
  int stage = 0, parity = 0;
  EDLM_UNROLL(1)
  for (int c = first; inside(c); c += kWarps) {
    bulk_wait(barriers + stage * 2, parity);
    Bytes16 spans[kSpans<T>];
    const SharedPtr<double> from = stages + stage * kStageSize<T> + lane() * 2;
    load_pieces(phase, spans, [&](int i) { return load16_shared(from, i); }, T{});
    sync_warp();
    start_copy(c + kStages * kWarps, stage);
    hide_in_chunk(row, c * kWarpChunk, spans);
    sum_spans(row, c, spans, sums);
    if (++stage == kStages) {
      stage = 0;
      parity ^= 1;
    }
  }
  sync_warp();
}

// All of a row's chunks by its team, in the way that the device and kBulkCopies allow.
template <int kWarps, class T, class Sums>
EDLM_DEVICE void read_long_row(const Row<T>& row, const Sums& sums) {
  if constexpr (kBulkCopies && kWarps > 1 && !Sums::kStatistics && has_bulk_copies()) {
    read_row_by_copies<kWarps>(row, sums, dynamic_shared() + ring_offset(row.vocab));
  } else {
    read_row<kWarps>(row, sums);
  }
}

}  // namespace edlm::cuda
