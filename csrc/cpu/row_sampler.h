// Draws from a row whose sums are there.
#pragma once

#include <algorithm>
#include <cstdint>

#include "row_pass.h"

namespace edlm::cpu {

// The last cell's weights are kept: draws of a peaked row share their cell.
class RowSampler {
 public:
  // `read_cell`: of the row_pass() that made the sums.
  RowSampler(const Row& row, const RowScratch& scratch, decltype(RowPass::cell) read_cell)
      : row_(row), scratch_(scratch), read_cell_(read_cell) {}

  int64_t draw(double u) {
    const Pick chunk =
        pick_from_sums(scratch_.prefix_sum(), scratch_.chunk_weight(), scratch_.chunks(), u);
    const int64_t first_cell = chunk.index * kCellsPerChunk;
    const int64_t cells = std::min(kCellsPerChunk, ceil_div(row_.vocab, kCell) - first_cell);
    const Pick cell = pick(scratch_.cell_sum() + first_cell, cells,
                           scratch_.chunk_sum()[chunk.index], chunk.share);
    const int64_t begin = (first_cell + cell.index) * kCell;
    if (begin != begin_) {
      begin_ = begin;
      read_cell_(row_, begin, std::min(kCell, row_.vocab - begin),
                 scratch_.chunk_reference()[chunk.index], &weights_);
    }
    return begin + weights_.token(cell.share);
  }

 private:
  const Row& row_;
  const RowScratch& scratch_;
  decltype(RowPass::cell) read_cell_;
  int64_t begin_ = -1;
  CellWeights weights_;
};

}  // namespace edlm::cpu
