// The vectorised passes over one row of logits, compiled once per instruction set.
#pragma once

#include <cstdint>
#include <vector>

#include "edlm/dtype.h"
#include "edlm/row_sampling.h"
#include "edlm/sample_candidates.h"
#include "edlm/token_log_probs.h"

namespace edlm::cpu {

struct Row {
  const void* logits;  // [vocab]
  DType dtype;
  int64_t vocab;
  int64_t forbidden_id;  // read as -inf; -1 for none
  float inv_temperature;
};

// What a read leaves besides its sums by chunk.
enum class RowPart {
  kChunks,
  kCells,       // sums by cell
  kStatistics,  // sums by cell, and the statistics of chunks
  kMaxima,      // the largest logit of each cell
};

// Of a chunk: its two largest logits, and sum((logit - reference) exp((logit - reference) / T)).
struct ChunkStatistics {
  float top, second;  // -inf for none
  float reference;
  double moment;
};

// Partial sums of one row, relative to a reference per chunk (row_sampling.h).
struct RowSums {
  float* cell_sum;                    // [ceil(vocab / kCell)]
  float* cell_max;                    // [ceil(vocab / kCell)]
  float* chunk_reference;             // [ceil(vocab / kChunk)], near the chunk's largest logit
  double* chunk_sum;                  // [ceil(vocab / kChunk)], NaN where it holds NaN or +inf
  ChunkStatistics* chunk_statistics;  // [ceil(vocab / kChunk)]

  RowSums from_chunk(int64_t chunk) const {
    const int64_t cell = chunk * kCellsPerChunk;
    return {cell_sum + cell, cell_max + cell, chunk_reference + chunk, chunk_sum + chunk,
            chunk_statistics + chunk};
  }
};

// Tokens whose logits lie from `low` to `high`, both finite, of the first `run` <= kCell in every
// `step`. Cells of a smaller maximum are passed over, if `cell_max` is given.
struct Choice {
  float low, high;
  const float* cell_max = nullptr;
  int64_t run = kCell, step = kCell;
};
// Tokens of room that are wanted beyond those chosen.
inline constexpr int64_t kChoiceMargin = 16;

// Finite logits, and the reference of the weights of those above.
struct Split {
  float low, high, reference;
};

// The ops themselves on rows of up to kCell tokens, uncut.
struct ShortRows {
  Status (*sample_candidates)(const SampleCandidatesArgs& args, int64_t begin, int64_t end);
  Status (*token_log_probs)(const TokenLogProbsArgs& args, int64_t begin, int64_t end);
};

struct RowPass {
  const char* name;
  const ShortRows& short_rows;
  // One read of the row. Every element of the sums asked for is written.
  void (*sum)(const Row& row, const RowSums& sums);
  void (*sum_chunks)(const Row& row, const RowSums& sums);
  void (*sum_with_statistics)(const Row& row, const RowSums& sums);
  void (*sum_chunks_with_maxima)(const Row& row, const RowSums& sums);
  // weights[i] = exp((logit[begin + i] - reference) / T) for i in [0, count), count <= kCell.
  // `weights` has room for kCell.
  void (*weights)(const Row& row, int64_t begin, int64_t count, float reference, float* weights);
  // The same, and their sums by groups.
  void (*cell)(const Row& row, int64_t begin, int64_t count, float reference, CellWeights* cell);
  // Writes the tokens that are chosen, by rising id, and returns how many they are. `ids` may be
  // null.
  int64_t (*choose)(const Row& row, const Choice& choice, float* logits, int32_t* ids);
  // Writes the row's logits from split.low to split.high, counts them in *found, from 0 on, and
  // returns the sum of exp((logit - split.reference) / T) over those above.
  double (*split)(const Row& row, const Split& split, float* logits, int64_t* found);
  // The same, and returns how many those above are.
  double (*split_count)(const Row& row, const Split& split, float* logits, int64_t* found);

  // The same two of a row whose elements are the weights themselves. There is no reference (it is
  // written as 0), and a negative weight makes its chunk's sum NaN.
  void (*sum_weights)(const Row& row, const RowSums& sums);
  void (*weight_cell)(const Row& row, int64_t begin, int64_t count, float, CellWeights* cell);
};

// The best pass this processor runs, or the one named by the environment variable EDLM_CPU_ISA
// (avx512, avx2, portable). Decided once.
const RowPass& row_pass();

// A row's total over its chunks.
struct RowTotal {
  float reference;  // near the row's largest logit
  double sum;    // of exp((logit - reference) / T); NaN if the row holds NaN or +inf, 0 if all -inf
  double log_z;  // log(sum): log p(token) = (logit - reference) / T - log_z
};

// Room for one row's sums, reused from row to row.
class RowScratch {
 public:
  // For rows of up to `vocab` tokens.
  explicit RowScratch(int64_t vocab)
      : chunks_(ceil_div(vocab, kChunk)),
        cell_sum_(ceil_div(vocab, kCell)),
        cell_max_(ceil_div(vocab, kCell)),
        chunk_reference_(chunks_),
        chunk_sum_(chunks_),
        chunk_weight_(chunks_),
        prefix_sum_(chunks_),
        chunk_statistics_(chunks_) {}

  // For the next row, of `vocab` tokens.
  RowSums sums(int64_t vocab) {
    chunks_ = ceil_div(vocab, kChunk);
    return {cell_sum_.data(), cell_max_.data(), chunk_reference_.data(), chunk_sum_.data(),
            chunk_statistics_.data()};
  }
  RowTotal total(float inv_temperature);
  // Entropy, and the log-probabilities of the two most likely tokens (sample_candidates.h). After
  // total().
  void statistics(float inv_temperature, const RowTotal& total, float* to) const;

  int64_t chunks() const { return chunks_; }
  const float* cell_sum() const { return cell_sum_.data(); }
  const float* cell_max() const { return cell_max_.data(); }
  const float* chunk_reference() const { return chunk_reference_.data(); }
  const double* chunk_sum() const { return chunk_sum_.data(); }
  // chunk_sum relative to the row's reference; filled by total().
  const double* chunk_weight() const { return chunk_weight_.data(); }
  // Inclusive prefix sums of chunk_weight.
  const double* prefix_sum() const { return prefix_sum_.data(); }

 private:
  int64_t chunks_;
  std::vector<float> cell_sum_, cell_max_, chunk_reference_;
  std::vector<double> chunk_sum_, chunk_weight_, prefix_sum_;
  std::vector<ChunkStatistics> chunk_statistics_;
};

inline float logit_at(const Row& row, int64_t id) {
  return with_dtype(row.dtype, [&](auto type) {
    return to_float(static_cast<const typename decltype(type)::type*>(row.logits)[id]);
  });
}

inline const void* row_at(const void* logits, DType dtype, int64_t row, int64_t row_stride) {
  return static_cast<const char*>(logits) + row * row_stride * size_of(dtype);
}

}  // namespace edlm::cpu
