// One read of a row of logits: partial sums by cell and chunk, as row_sampling.h describes.
//
// The hierarchy is a warp's: a cell is 32 tokens, one per lane, and a chunk 32 cells. A warp holds
// a chunk in registers, so a chunk's reference is its own largest logit, and cells and chunks lie
// at fixed places of the row: sums do not depend on the row's address, on who else is in the batch,
// or on how rows are split over blocks.
#pragma once

#include "block.cuh"
#include "edlm/dtype.h"

namespace edlm::cuda {

inline constexpr int kWarpChunk = kLanes * kLanes;

// Blocks of 256 threads that must fit a multiprocessor: leaves a thread 128 registers for fp32,
// whose chunk takes 32 and as many for the neighbours of unaligned rows, and 80 for 16-bit logits.
template <class T>
inline constexpr int kBlocks = sizeof(T) == 4 ? 2 : 3;
inline constexpr int kSumThreads = 256;

// Tokens that a lane loads at once, 16 bytes.
template <class T>
inline constexpr int kSpan = 16 / int(sizeof(T));
// The loads by which a warp reads a chunk. Also the number of lanes that hold one cell.
template <class T>
inline constexpr int kSpans = kLanes / kSpan<T>;

EDLM_DEVICE float minus_inf(float) { return -kInf; }
EDLM_DEVICE BFloat16 minus_inf(BFloat16) { return {0xff80}; }
EDLM_DEVICE Float16 minus_inf(Float16) { return {0xfc00}; }

template <class T>
struct Row {
  const T* logits;  // [vocab]
  int64_t vocab;
  int64_t forbidden_id;   // read as -inf; -1 for none
  float inv_temperature;  // 1 / T
  float scale;            // log2(e) / T
  float floor = -kInf;    // tokens of a smaller logit are read as -inf

  // exp((logit - reference) / T), relative error about 2^-23 * (1 + |exponent|).
  EDLM_DEVICE float weight(float logit, float reference) const {
    return exp2_approx((logit - reference) * scale);
  }
  // What is read for a token: its logit, or -inf where the row must not mean it.
  EDLM_DEVICE T value(int64_t id) const {
    if (id >= vocab || id == forbidden_id) return minus_inf(T{});
    const T value = logits[id];
    return widen(value) < floor ? minus_inf(T{}) : value;
  }
  EDLM_DEVICE float logit(int64_t id) const { return widen(value(id)); }
};

template <class T, class Args>
EDLM_DEVICE Row<T> row_of(const Args& args, int64_t r) {
  const float inv_temperature = 1.0f / args.temperature;
  const T* logits = static_cast<const T*>(args.logits) + r * args.row_stride;
  return {logits, args.vocab, args.forbidden_id, inv_temperature, inv_temperature * 1.44269504f};
}

// Partial sums of one row. Without room for cells, `cell_sum` is null.
struct RowSums {
  SharedPtr<double> chunk_sum;       // [chunks], NaN where a chunk holds NaN or +inf
  SharedPtr<float> chunk_reference;  // [chunks], its largest logit, -inf for a chunk without tokens
  SharedPtr<float> cell_sum;         // [chunks * 32]
};

EDLM_HD int64_t chunks_of(int64_t vocab) { return ceil_div(vocab, kWarpChunk); }

// Doubles of memory that the sums of one row take.
EDLM_HD int64_t sums_size(int64_t vocab, bool cells) {
  const int64_t chunks = chunks_of(vocab);
  return chunks + ceil_div(chunks, 2) + (cells ? chunks * kLanes / 2 : 0);
}

EDLM_DEVICE RowSums sums_at(SharedPtr<double> memory, int64_t vocab, bool cells) {
  const int64_t chunks = chunks_of(vocab);
  const SharedPtr<float> reference = SharedPtr<float>(memory + chunks);
  return {memory, reference, cells ? reference + 2 * ceil_div(chunks, 2) : SharedPtr<float>()};
}

// The place of this team's row: in `workspace`, or in shared memory where that is null.
template <int kWarps>
EDLM_DEVICE RowSums team_sums(int64_t vocab, bool cells, double* workspace) {
  const int64_t size = sums_size(vocab, cells);
  const SharedPtr<double> memory = workspace
                                       ? SharedPtr<double>(workspace + Team<kWarps>::row() * size)
                                       : dynamic_shared() + Team<kWarps>::place() * size;
  return sums_at(memory, vocab, cells);
}

// The 16 bytes that start `phase` bytes into the 32 of (a, b). `phase` is even and below 16.
EDLM_DEVICE Bytes16 realign(const Bytes16& a, const Bytes16& b, int phase) {
  uint32_t word[8];
  for (int i = 0; i < 4; ++i) {
    word[i] = a.word[i];
    word[i + 4] = b.word[i];
  }
  if (phase & 8) {
    for (int i = 0; i < 6; ++i) word[i] = word[i + 2];
  }
  if (phase & 4) {
    for (int i = 0; i < 5; ++i) word[i] = word[i + 1];
  }
  Bytes16 bytes;
  for (int i = 0; i < 4; ++i) {
    bytes.word[i] = funnel_right(word[i], word[i + 1], (phase & 2) * 8);
  }
  return bytes;
}

EDLM_DEVICE void unpack(const Bytes16& bytes, float (&to)[4], float) {
  for (int i = 0; i < 4; ++i) to[i] = from_bits(bytes.word[i]);
}
template <class Half>
EDLM_DEVICE void unpack(const Bytes16& bytes, float (&to)[8], Half) {
  for (int i = 0; i < 4; ++i) {
    to[2 * i] = widen(Half{uint16_t(bytes.word[i])});
    to[2 * i + 1] = widen(Half{uint16_t(bytes.word[i] >> 16)});
  }
}

EDLM_DEVICE Bytes16 pack(const float (&values)[4]) {
  Bytes16 bytes;
  for (int i = 0; i < 4; ++i) bytes.word[i] = to_bits(values[i]);
  return bytes;
}
template <class Half>
EDLM_DEVICE Bytes16 pack(const Half (&values)[8]) {
  Bytes16 bytes;
  for (int i = 0; i < 4; ++i) {
    bytes.word[i] = values[2 * i].bits | uint32_t(values[2 * i + 1].bits) << 16;
  }
  return bytes;
}

// The largest logit of a lane's spans; NaN counts as -inf.
EDLM_DEVICE float largest(const Bytes16 (&spans)[8], float) {
  float top = -kInf;
  for (const Bytes16& span : spans) {
    for (int i = 0; i < 4; ++i) top = max_of(top, from_bits(span.word[i]));
  }
  return top;
}
template <class Half>
EDLM_DEVICE float largest(const Bytes16 (&spans)[4], Half) {
  uint32_t top = spans[0].word[0];
  for (const Bytes16& span : spans) {
    for (int i = 0; i < 4; ++i) top = max_of_pairs(top, span.word[i], Half{});
  }
  return max_of(-kInf, max_of(widen(Half{uint16_t(top)}), widen(Half{uint16_t(top >> 16)})));
}

// kSpan tokens from `first` on, of which some may lie beyond the row, be forbidden or below the
// floor: those become -inf. No byte outside the row is read.
template <class T>
EDLM_DEVICE Bytes16 load_span(const Row<T>& row, int64_t first) {
  T values[kSpan<T>];
  for (int i = 0; i < kSpan<T>; ++i) values[i] = row.value(first + i);
  return pack(values);
}

// The tokens of a chunk that this lane holds: kSpan from `begin + lane * kSpan` on, and so on every
// 32 * kSpan tokens.
template <class T>
EDLM_DEVICE void load_chunk(const Row<T>& row, int64_t begin, Bytes16 (&spans)[kSpans<T>]) {
  constexpr int kStride = kLanes * kSpan<T>;
  const int64_t first = begin + lane() * kSpan<T>;
  const T* const mine = row.logits + first;
  const int phase = int(reinterpret_cast<uintptr_t>(mine) % 16);
  const bool plain =
      row.floor == -kInf && (row.forbidden_id < begin || row.forbidden_id >= begin + kWarpChunk);
  const int margin = phase ? kSpan<T> : 0;
  if (!plain || begin < margin || begin + kWarpChunk + margin > row.vocab) {
    for (int s = 0; s < kSpans<T>; ++s) spans[s] = load_span(row, first + s * kStride);
  } else if (phase == 0) {
    for (int s = 0; s < kSpans<T>; ++s) spans[s] = load16(mine + s * kStride);
  } else {
    // Rows need not start at a multiple of 16 bytes: a span lies in two aligned pieces, of which
    // the second is the first of the lane above, so it comes from the cache.
    const T* const aligned = mine - phase / int(sizeof(T));
    Bytes16 next[kSpans<T>];
    for (int s = 0; s < kSpans<T>; ++s) {
      spans[s] = load16(aligned + s * kStride);
      next[s] = load16(aligned + s * kStride + kSpan<T>);
    }
    for (int s = 0; s < kSpans<T>; ++s) spans[s] = realign(spans[s], next[s], phase);
  }
}

template <class T>
EDLM_DEVICE void sum_chunk(const Row<T>& row, int64_t chunk, const RowSums& sums) {
  Bytes16 spans[kSpans<T>];
  load_chunk(row, chunk * kWarpChunk, spans);
  const float top = warp_max(largest(spans, T{}));
  const float reference = top == -kInf ? 0.0f : top;

  float cell = 0;
  for (int s = 0; s < kSpans<T>; ++s) {
    float logits[kSpan<T>], sum = 0;
    unpack(spans[s], logits, T{});
    for (int i = 0; i < kSpan<T>; ++i) sum += row.weight(logits[i], reference);
    for (int d = 1; d < kSpans<T>; d *= 2) sum += shuffle_xor(sum, d);
    // kSpans lanes know the sum of the same cell: each keeps that of another span.
    cell = lane() % kSpans<T> == s ? sum : cell;
  }
  const double sum = warp_sum(double(cell));
  if (sums.cell_sum) {
    sums.cell_sum[chunk * kLanes + lane() % kSpans<T> * kSpan<T> + lane() / kSpans<T>] = cell;
  }
  if (lane() == 0) {
    sums.chunk_sum[chunk] = sum;
    sums.chunk_reference[chunk] = top;
  }
}

// All of a row's chunks, dealt to the warps of its team. Ends with the sums visible to all of them.
template <int kWarps, class T>
EDLM_DEVICE void sum_row(const Row<T>& row, const RowSums& sums) {
  const int64_t chunks = chunks_of(row.vocab);
  for (int64_t c = Team<kWarps>::warp(); c < chunks; c += kWarps) sum_chunk(row, c, sums);
  Team<kWarps>::sync();
}

// A row's total over its chunks.
struct RowTotal {
  float reference;  // the row's largest logit
  double sum;  // of exp((logit - reference) / T); NaN if the row holds NaN or +inf, 0 if all -inf
};

// A chunk's sum relative to the row's reference.
template <class T>
EDLM_DEVICE double chunk_weight(const Row<T>& row, const RowSums& sums, int64_t chunk,
                                float row_reference) {
  const float reference = sums.chunk_reference[chunk];
  // inf - inf must not hide which chunk was bad, nor make a chunk without tokens so.
  const float factor = reference == row_reference || reference == -kInf
                           ? 1.0f
                           : row.weight(reference, row_reference);
  return sums.chunk_sum[chunk] * factor;
}

// Every warp of the team gets the same total, to the bit.
template <class T>
EDLM_DEVICE RowTotal row_total(const Row<T>& row, const RowSums& sums) {
  const int64_t chunks = chunks_of(row.vocab);
  float reference = -kInf;
  for (int64_t c = lane(); c < chunks; c += kLanes) {
    reference = max_of(reference, sums.chunk_reference[c]);
  }
  reference = warp_max(reference);
  double sum = 0;
  for (int64_t c = lane(); c < chunks; c += kLanes) sum += chunk_weight(row, sums, c, reference);
  return {reference, warp_sum(sum)};
}

// The log-probability of a token, never positive.
template <class T>
EDLM_DEVICE float log_prob(const Row<T>& row, float logit, float reference, double log_z) {
  const double value = (double(logit) - double(reference)) * double(row.inv_temperature) - log_z;
  return float(value < 0 ? value : 0.0);
}

// Few rows: their chunks over many blocks, one chunk to a warp, sums to a workspace.
template <class T, class Args>
EDLM_KERNEL(kSumThreads, kBlocks<T>)
sum_rows_kernel(Args args, double* workspace, bool cells) {
  const int64_t chunks = chunks_of(args.vocab);
  const int64_t task = (block_index() * block_threads() + thread_index()) / kLanes;
  if (task >= args.rows * chunks) return;
  const int64_t r = task / chunks;
  double* const memory = workspace + r * sums_size(args.vocab, cells);
  sum_chunk(row_of<T>(args, r), task % chunks,
            sums_at(SharedPtr<double>(memory), args.vocab, cells));
}

}  // namespace edlm::cuda
