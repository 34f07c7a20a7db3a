// What top_k, top_p and min_p leave of a row, as a row of its own.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <vector>

#include "row_pass.h"

namespace edlm::cpu {

struct Cuts {
  int64_t top_k;  // 0 for none
  double top_p;   // 1 for none
  double min_p;   // 0 for none
};

// Some tokens of a row.
struct TokenList {
  std::unique_ptr<float[]> logits;
  std::unique_ptr<int32_t[]> ids;
  int64_t count = 0;

  // With room for `most` tokens.
  explicit TokenList(int64_t most)
      : logits(std::make_unique_for_overwrite<float[]>(most + kChoiceMargin)),
        ids(std::make_unique_for_overwrite<int32_t[]>(most + kChoiceMargin)) {}
};

class CutRow {
 public:
  // For rows of up to `vocab` tokens.
  explicit CutRow(int64_t vocab) : lists_{TokenList(vocab), TokenList(vocab)}, part_(vocab) {}

  // The kept tokens of a row in its order; valid until the next call. `total` and `cell_max` are of
  // its sum_chunks_with_maxima.
  Row cut(const Row& row, const RowTotal& total, const float* cell_max, const Cuts& cuts);

  // The token of the row that became `index` of the kept ones.
  int64_t id(int64_t index) const { return source_.list->ids[index]; }

 private:
  // The tokens that may be kept: the row, and then lists of ever fewer.
  struct Source {
    Row row;
    const float* cell_max;  // null for a list
    const TokenList* list;  // null for the row
  };
  struct Bounds {
    float low, high;
  };
  // For the largest logit such that the tokens from it on are `wanted` or more, or with kMass weigh
  // as much of `total`. Tokens below `least` are not looked at; `top` is the largest.
  template <bool kMass>
  struct Search {
    double wanted, total;
    float least, top;
    float reference;  // of the weights
  };

  void narrow(float low);
  float low_of_maxima(int64_t count, float top);
  template <bool kMass>
  float floor_reaching(const Search<kMass>& search);
  template <bool kMass>
  std::optional<float> floor_within(const Search<kMass>& search, const Bounds& bounds);
  template <bool kMass>
  Bounds estimate(const Search<kMass>& search);

  Source source_;
  TokenList lists_[2];
  TokenList part_;  // without ids
  std::vector<double> bins_;
};

}  // namespace edlm::cpu
