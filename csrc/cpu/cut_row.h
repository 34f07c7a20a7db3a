// What top_k, top_p and min_p leave of a row, as a row of its own.
#pragma once

#include <cstdint>
#include <vector>

#include "row_pass.h"

namespace edlm::cpu {

struct Cuts {
  int64_t top_k;  // 0 for none
  double top_p;   // 1 for none
  double min_p;   // 0 for none
};

// Some tokens of a row, as a row.
class TokenList {
 public:
  explicit TokenList(int64_t most) : logits_(most + kCollectMargin), ids_(most + kCollectMargin) {}

  // The tokens of a row from the logit `low` to `high`, both finite. Cells of a smaller maximum are
  // passed over, if `cell_max` is given.
  void collect(const Row& row, const float* cell_max, float low, float high);

  Row row(float inv_temperature) const {
    return {logits_.data(), DType::kFloat32, count_, -1, inv_temperature};
  }
  int64_t count() const { return count_; }
  float logit(int64_t index) const { return logits_[index]; }
  // In the row they were collected from.
  int64_t id(int64_t index) const { return ids_[index]; }
  // Makes ids of places in `other` those of its tokens.
  void name_by(const TokenList& other);

 private:
  std::vector<float> logits_;
  std::vector<int32_t> ids_;
  int64_t count_ = 0;
};

class CutRow {
 public:
  // For rows of up to `vocab` tokens.
  explicit CutRow(int64_t vocab) : found_(vocab), part_(vocab), kept_(vocab) {}

  // The kept tokens of a row in its order; valid until the next call. `total` and `cell_max` are of
  // its sum_chunks_with_maxima.
  Row cut(const Row& row, const RowTotal& total, const float* cell_max, const Cuts& cuts);

  // The token of the row that became `index` of the kept ones.
  int64_t id(int64_t index) const { return kept_.id(index); }

 private:
  template <bool kMass>
  float reached(double wanted, float low, float high, float inv_temperature, float reference);

  TokenList found_, part_, kept_;
  std::vector<double> bins_;
  std::vector<float> maxima_;
};

}  // namespace edlm::cpu
