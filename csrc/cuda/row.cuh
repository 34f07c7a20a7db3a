// A row of logits and the reading of its chunks into registers, 16 bytes a lane and load.
//
// A cell is 32 tokens and a chunk 32 cells, whatever the row's address: a warp holds a chunk.
#pragma once

#include "block.cuh"
#include "edlm/dtype.h"

namespace edlm::cuda {

inline constexpr int kWarpChunk = kLanes * kLanes;

// Tokens that a lane loads at once, 16 bytes.
template <class T>
inline constexpr int kSpan = 16 / int(sizeof(T));
// The loads by which a warp reads a chunk. Also the number of lanes that hold one cell.
template <class T>
inline constexpr int kSpans = kLanes / kSpan<T>;

EDLM_HD constexpr int chunks_of(int vocab) { return (vocab + kWarpChunk - 1) / kWarpChunk; }

EDLM_DEVICE float minus_inf(float) { return -kInf; }
EDLM_DEVICE BFloat16 minus_inf(BFloat16) { return {0xff80}; }
EDLM_DEVICE Float16 minus_inf(Float16) { return {0xfc00}; }

// `kCut`: the row has a floor. Without one, no load waits for a comparison.
template <class T, bool kCut = false>
struct Row {
  const T* logits;  // [vocab]
  int vocab;
  int forbidden_id;       // read as -inf; -1 for none
  float inv_temperature;  // 1 / T
  float scale;            // log2(e) / T
  float floor = -kInf;    // tokens of a smaller logit are read as -inf

  // How many bytes a row starts beyond a multiple of 16.
  EDLM_DEVICE int phase() const { return int(reinterpret_cast<uintptr_t>(logits) % 16); }
  // Whether the 16-byte pieces that hold the chunk from `begin` on lie in the row.
  EDLM_DEVICE bool holds_pieces(int begin) const {
    const int margin = phase() ? kSpan<T> : 0;
    return begin >= margin && begin + kWarpChunk + margin <= vocab;
  }
  // The first of those pieces.
  EDLM_DEVICE const T* pieces(int begin) const { return logits + begin - phase() / int(sizeof(T)); }

  EDLM_DEVICE bool allows(int id, float logit) const {
    return id != forbidden_id && !(kCut && logit < floor);
  }
  // What is in memory for a token, or -inf beyond the row.
  EDLM_DEVICE T stored(int id) const { return id < vocab ? logits[id] : minus_inf(T{}); }
  // What is read for it: -inf where the row must not mean it.
  EDLM_DEVICE float logit(int id) const {
    const float logit = widen(stored(id));
    return allows(id, logit) ? logit : -kInf;
  }
};

template <class T, bool kCut = false, class Args>
EDLM_DEVICE Row<T, kCut> row_of(const Args& args, int64_t r) {
  const float inv_temperature = 1.0f / args.temperature;
  const T* logits = static_cast<const T*>(args.logits) + r * args.row_stride;
  return {logits, int(args.vocab), int(args.forbidden_id), inv_temperature,
          inv_temperature * 1.44269504f};
}

// The row of an op's arguments, for kernels of several ops.
template <class T, class Args>
struct RowOf {
  EDLM_DEVICE static Row<T> at(const Args& args, int64_t r) { return row_of<T>(args, r); }
};

// Moves every span down by 4 * kWords bytes and `bits` of the next 4, bits < 32: `next` holds the
// bytes behind each.
template <int kWords, int kCount>
EDLM_DEVICE void shift_down(Bytes16 (&spans)[kCount], const Bytes16 (&next)[kCount], int bits) {
  for (int s = 0; s < kCount; ++s) {
    uint32_t word[8];
    for (int i = 0; i < 4; ++i) {
      word[i] = spans[s].word[i];
      word[i + 4] = next[s].word[i];
    }
    for (int i = 0; i < 4; ++i) {
      spans[s].word[i] = funnel_right(word[i + kWords], word[i + kWords + 1], bits);
    }
  }
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

EDLM_DEVICE void put(Bytes16& bytes, int i, float value) { bytes.word[i] = to_bits(value); }
template <class Half>
EDLM_DEVICE void put(Bytes16& bytes, int i, Half value) {
  uint32_t& word = bytes.word[i / 2];
  word = i % 2 ? (word & 0xffffu) | uint32_t(value.bits) << 16 : (word & ~0xffffu) | value.bits;
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

// kSpan tokens from `first` on, of which some may lie beyond the row. No byte outside is read.
template <class T, bool kCut>
EDLM_DEVICE Bytes16 load_span(const Row<T, kCut>& row, int first) {
  Bytes16 bytes = {};
  for (int i = 0; i < kSpan<T>; ++i) put(bytes, i, row.stored(first + i));
  return bytes;
}

// Makes -inf of what the row must not mean, in registers.
template <class T, bool kCut>
EDLM_DEVICE void hide(const Row<T, kCut>& row, int first, Bytes16& span) {
  float logits[kSpan<T>];
  unpack(span, logits, T{});
  for (int i = 0; i < kSpan<T>; ++i) {
    if (!row.allows(first + i, logits[i])) put(span, i, minus_inf(T{}));
  }
}

// This lane's tokens of a chunk: kSpan from the `kSpan * lane`-th on, and so on every 32 * kSpan
// tokens. `piece(i)` is the i-th 16 bytes from the lane-th of those that hold the chunk, `phase`
// where in the first of them it starts.
template <class T, class Read>
EDLM_DEVICE void load_pieces(int phase, Bytes16 (&spans)[kSpans<T>], const Read& piece, T) {
  for (int s = 0; s < kSpans<T>; ++s) spans[s] = piece(s * kLanes);
  if (phase == 0) return;
  // A span lies in two pieces, of which the second is the first of the lane above, so it comes from
  // the cache.
  Bytes16 next[kSpans<T>];
  for (int s = 0; s < kSpans<T>; ++s) next[s] = piece(s * kLanes + 1);
  // The whole row has one phase: a branch costs less than to choose word by word.
  const int bits = sizeof(T) == 4 ? 0 : phase % 4 * 8;
  switch (phase / 4) {
    case 0:
      shift_down<0>(spans, next, bits);
      break;
    case 1:
      shift_down<1>(spans, next, bits);
      break;
    case 2:
      shift_down<2>(spans, next, bits);
      break;
    default:
      shift_down<3>(spans, next, bits);
  }
}

// Makes -inf of what the row must not mean in a chunk.
template <class T, bool kCut>
EDLM_DEVICE void hide_in_chunk(const Row<T, kCut>& row, int begin, Bytes16 (&spans)[kSpans<T>]) {
  if (kCut || (row.forbidden_id >= begin && row.forbidden_id < begin + kWarpChunk)) {
    const int first = begin + lane() * kSpan<T>;
    for (int s = 0; s < kSpans<T>; ++s) hide(row, first + s * kLanes * kSpan<T>, spans[s]);
  }
}

template <class T, bool kCut>
EDLM_DEVICE void load_chunk(const Row<T, kCut>& row, int begin, Bytes16 (&spans)[kSpans<T>]) {
  if (row.holds_pieces(begin)) {
    const T* const mine = row.pieces(begin) + lane() * kSpan<T>;
    load_pieces(row.phase(), spans, [&](int i) { return load16(mine + i * kSpan<T>); }, T{});
  } else {
    const int first = begin + lane() * kSpan<T>;
    for (int s = 0; s < kSpans<T>; ++s) spans[s] = load_span(row, first + s * kLanes * kSpan<T>);
  }
  hide_in_chunk(row, begin, spans);
}

}  // namespace edlm::cuda
