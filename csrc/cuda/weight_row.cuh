// A row whose elements are weights, not logits: read, summed and drawn from as row_pass.cuh does
// with one of logits, but for the exponential.
#pragma once

#include "edlm/sample_weights.h"
#include "row_draw.cuh"

namespace edlm::cuda {

template <class T>
struct WeightRow {
  Row<T> row;
  int vocab;
  // The scale of the gaps between references, all of them 0.
  static constexpr float scale = 1;

  // What is read for a token: 0 beyond the row, and NaN where there is no weight.
  EDLM_DEVICE float logit(int id) const {
    return id < vocab ? checked(widen(row.logits[id])) : 0.0f;
  }
  EDLM_DEVICE static float checked(float weight) { return weight >= 0 ? weight : kNaN; }
};

template <class T>
struct RowOf<T, SampleWeightsArgs> {
  EDLM_DEVICE static WeightRow<T> at(const SampleWeightsArgs& args, int64_t r) {
    const T* weights = static_cast<const T*>(args.weights) + r * args.row_stride;
    return {{weights, int(args.vocab), -1, 1, 1}, int(args.vocab)};
  }
};

template <class T>
EDLM_DEVICE void load_chunk(const WeightRow<T>& row, int begin, Bytes16 (&spans)[kSpans<T>]) {
  if (row.row.holds_pieces(begin)) {
    const T* const mine = row.row.pieces(begin) + lane() * kSpan<T>;
    load_pieces(row.row.phase(), spans, [&](int i) { return load16(mine + i * kSpan<T>); }, T{});
    return;
  }
  for (int s = 0; s < kSpans<T>; ++s) {
    const int first = begin + (s * kLanes + lane()) * kSpan<T>;
    spans[s] = {};
    for (int i = 0; i < kSpan<T>; ++i) {
      put(spans[s], i, first + i < row.vocab ? row.row.logits[first + i] : T{});
    }
  }
}

template <class T>
EDLM_DEVICE void sum_chunk(const WeightRow<T>& row, int chunk, const RowSums& sums) {
  Bytes16 spans[kSpans<T>];
  load_chunk(row, chunk * kWarpChunk, spans);
  float part[kSpans<T>];
  for (int s = 0; s < kSpans<T>; ++s) {
    float weights[kSpan<T>];
    unpack(spans[s], weights, T{});
    part[s] = 0;
    for (int i = 0; i < kSpan<T>; ++i) part[s] += WeightRow<T>::checked(weights[i]);
  }
  put_cell<T>(sums, chunk, transposed_sum(part));
  if (lane() == 0) sums.chunk_reference[chunk] = 0;
}

template <int kWarps, class T>
EDLM_DEVICE void read_row(const WeightRow<T>& row, const RowSums& sums) {
  EDLM_UNROLL(1)
  for (int c = Team<kWarps>::warp(); c < chunks_of(row.vocab); c += kWarps) sum_chunk(row, c, sums);
  sync_warp();
}

template <class T>
EDLM_DEVICE auto weight_in(const WeightRow<T>&, float) {
  return [](float weight) { return weight; };
}

template <class T>
EDLM_DEVICE float log_prob(const WeightRow<T>&, float weight, const RowTotal& total) {
  const double value = log(double(weight)) - total.log_z;
  return float(value < 0 ? value : 0.0);
}

}  // namespace edlm::cuda
