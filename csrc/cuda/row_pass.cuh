// One read of a row of logits: partial sums by cell and chunk, as row_sampling.h describes.
//
// A chunk's reference is its own largest logit, and cells and chunks lie at fixed places of the
// row: sums do not depend on the row's address, on who else is in the batch, or on how rows are
// split over blocks.
#pragma once

#include "row.cuh"

namespace edlm::cuda {

// Whether row_ring.cuh brings the chunks. Off until a GPU has shown it right and faster.
inline constexpr bool kBulkCopies = false;

// Blocks of 256 threads that must fit a multiprocessor: leaves a thread 128 registers for fp32,
// whose chunk takes 32 and as many for the neighbours of unaligned rows, and 64 for 16-bit logits.
template <class T>
inline constexpr int kBlocks = sizeof(T) == 4 ? 2
                               : kBulkCopies  ? 3
                                              : 4;
inline constexpr int kSumThreads = 256;

// Partial sums of one row.
struct RowSums {
  static constexpr bool kStatistics = false;
  SharedPtr<double> total;           // [5], a RowTotal for all warps to read
  SharedPtr<double> chunk_sum;       // [chunks], NaN where a chunk holds NaN or +inf
  SharedPtr<double> chunk_prefix;    // [chunks], inclusive
  SharedPtr<float> chunk_reference;  // [chunks], its largest logit, -inf for a chunk without tokens
  SharedPtr<float> cell_sum;         // [chunks * 32]
};

// With what the statistics of the row's law are made of.
struct RowStatistics : RowSums {
  static constexpr bool kStatistics = true;
  SharedPtr<float> chunk_second;  // [chunks], its second largest logit, -inf for none
  SharedPtr<float> chunk_moment;  // [chunks], sum of x 2^x, x as exponent_as() has it
};

// Doubles of memory: what a read of the row leaves, and what is made of it.
template <class Sums = RowSums>
EDLM_HD int read_size(int vocab) {
  const int chunks = chunks_of(vocab);
  return (chunks + 1) / 2 + chunks * kLanes / 2 + (Sums::kStatistics ? chunks : 0);
}
EDLM_HD int sums_size(int vocab) { return 5 + 2 * chunks_of(vocab); }

// `read` holds what read_size() counts, `made` the rest.
template <class Sums = RowSums>
EDLM_DEVICE Sums sums_at(SharedPtr<double> read, SharedPtr<double> made, int vocab) {
  const int chunks = chunks_of(vocab);
  const SharedPtr<float> cells = SharedPtr<float>(read);
  const RowSums sums = {made, made + 5, made + 5 + chunks, cells + chunks * kLanes, cells};
  if constexpr (Sums::kStatistics) {
    const SharedPtr<float> more = SharedPtr<float>(read + read_size(vocab));
    return {sums, more, more + chunks};
  } else {
    return sums;
  }
}

// A team's row. What is read is in shared memory too, unless the row is split: then in `workspace`.
template <class Sums, int kWarps, bool kSplit>
EDLM_DEVICE Sums team_sums(int vocab, double* workspace) {
  const int read = read_size<Sums>(vocab), made = sums_size(vocab);
  const SharedPtr<double> shared =
      dynamic_shared() + Team<kWarps>::place() * (made + (kSplit ? 0 : read));
  if constexpr (kSplit) {
    return sums_at<Sums>(SharedPtr<double>(workspace + Team<kWarps>::row() * read), shared, vocab);
  } else {
    return sums_at<Sums>(shared + made, shared, vocab);
  }
}

// The weights of one chunk, exp((logit - reference) / T), all of them times 2^excess. Relative
// error about 2^-23 * (1 + |exponent|).
struct ChunkScale {
  float scale, reference;
  float scaled;  // reference * scale, rounded
  bool fused;    // one multiply-add does; else the reference is so large that rounding it matters

  EDLM_DEVICE ChunkScale(float top, float scale)
      : scale(scale),
        reference(top == -kInf ? 0.0f : top),
        scaled(reference * scale),
        fused(scaled < 1048576.0f && scaled > -1048576.0f) {}

  template <bool kFused>
  EDLM_DEVICE float exponent_as(float logit) const {
    return kFused ? multiply_add(logit, scale, -scaled) : (logit - reference) * scale;
  }
  template <bool kFused>
  EDLM_DEVICE float weight_as(float logit) const {
    return exp2_approx(exponent_as<kFused>(logit));
  }
  EDLM_DEVICE float weight(float logit) const {
    return fused ? weight_as<true>(logit) : weight_as<false>(logit);
  }
  // What rounding left of reference * scale, exactly; below 1 / 16.
  EDLM_DEVICE float excess() const { return fused ? multiply_add(reference, scale, -scaled) : 0; }
};

// kCount sums in kCount lanes each, in parts: lane L gets the whole of sum L % kCount.
template <int kCount>
EDLM_DEVICE float transposed_sum(float (&part)[kCount]) {
  for (int d = 1; d < kCount; d *= 2) {
    const bool odd = lane() & d;
    for (int i = 0; i < kCount / 2 / d; ++i) {
      const float keep = odd ? part[2 * i + 1] : part[2 * i];
      const float give = odd ? part[2 * i] : part[2 * i + 1];
      part[i] = keep + shuffle_xor(give, d);
    }
  }
  return part[0];
}

template <bool kFused, class T>
EDLM_DEVICE float cell_of(const Bytes16 (&spans)[kSpans<T>], const ChunkScale& scale, T) {
  float part[kSpans<T>];
  for (int s = 0; s < kSpans<T>; ++s) {
    float logits[kSpan<T>];
    unpack(spans[s], logits, T{});
    part[s] = scale.weight_as<kFused>(logits[0]);
    for (int i = 1; i < kSpan<T>; ++i) part[s] += scale.weight_as<kFused>(logits[i]);
  }
  return transposed_sum(part);
}

// The same, and this lane's part of the chunk's moment.
template <bool kFused, class T>
EDLM_DEVICE float cell_and_moment_of(const Bytes16 (&spans)[kSpans<T>], const ChunkScale& scale, T,
                                     float& moment) {
  float part[kSpans<T>];
  moment = 0;
  for (int s = 0; s < kSpans<T>; ++s) {
    float logits[kSpan<T>];
    unpack(spans[s], logits, T{});
    part[s] = 0;
    for (int i = 0; i < kSpan<T>; ++i) {
      const float exponent = scale.exponent_as<kFused>(logits[i]);
      const float weight = exp2_approx(exponent);
      part[s] += weight;
      // -inf times 0 would be NaN; from here on the weight is 0.
      moment = multiply_add(weight, max_of(exponent, -150.0f), moment);
    }
  }
  return transposed_sum(part);
}

// A warp's second largest of its lanes' two largest, of which `largest` is the warp's.
EDLM_DEVICE float warp_second(float top, float second, float largest) {
  const uint32_t owners = ballot(top == largest);
  const float rest = warp_max(top == largest ? second : top);
  return owners & (owners - 1) ? largest : rest;
}

template <class T>
EDLM_DEVICE void two_largest(const Bytes16 (&spans)[kSpans<T>], T, float& top, float& second) {
  top = second = -kInf;
  for (const Bytes16& span : spans) {
    float logits[kSpan<T>];
    unpack(span, logits, T{});
    for (const float logit : logits) {
      second = max_of(second, min_of(top, logit));
      top = max_of(top, logit);
    }
  }
}

// Where a chunk's sums by transposed_sum() belong: lane L has that of span L % kSpans.
template <class T>
EDLM_DEVICE void put_cell(const RowSums& sums, int chunk, float cell) {
  sums.cell_sum[chunk * kLanes + lane() % kSpans<T> * kSpan<T> + lane() / kSpans<T>] = cell;
}

template <class T, bool kCut>
EDLM_DEVICE void sum_spans(const Row<T, kCut>& row, int chunk, const Bytes16 (&spans)[kSpans<T>],
                           const RowStatistics& sums) {
  float top, second, moment;
  two_largest(spans, T{}, top, second);
  const float largest = warp_max(top);
  second = warp_second(top, second, largest);
  const ChunkScale scale(largest, row.scale);
  const float cell = scale.fused ? cell_and_moment_of<true>(spans, scale, T{}, moment)
                                 : cell_and_moment_of<false>(spans, scale, T{}, moment);
  for (int d = kLanes / 2; d > 0; d /= 2) moment += shuffle_xor(moment, d);
  put_cell<T>(sums, chunk, cell);
  if (lane() == 0) {
    sums.chunk_reference[chunk] = largest;
    sums.chunk_second[chunk] = second;
    sums.chunk_moment[chunk] = moment;
  }
}

template <class T, bool kCut>
EDLM_DEVICE void sum_spans(const Row<T, kCut>& row, int chunk, const Bytes16 (&spans)[kSpans<T>],
                           const RowSums& sums) {
  const float top = warp_max(largest(spans, T{}));
  const ChunkScale scale(top, row.scale);
  const float cell =
      scale.fused ? cell_of<true>(spans, scale, T{}) : cell_of<false>(spans, scale, T{});
  put_cell<T>(sums, chunk, cell);
  if (lane() == 0) sums.chunk_reference[chunk] = top;
}

template <class T, bool kCut, class Sums>
EDLM_DEVICE void sum_chunk(const Row<T, kCut>& row, int chunk, const Sums& sums) {
  Bytes16 spans[kSpans<T>];
  load_chunk(row, chunk * kWarpChunk, spans);
  sum_spans(row, chunk, spans, sums);
}

// Adds the cells of this warp's chunks in fp64, eight lanes to a chunk.
template <int kWarps>
EDLM_DEVICE void add_cells(int chunks, const RowSums& sums) {
  constexpr int kTogether = 4;
  EDLM_UNROLL(1)
  for (int c = Team<kWarps>::warp(); c < chunks; c += kTogether * kWarps) {
    const int chunk = c + lane() / 8 * kWarps;
    double sum = 0;
    if (chunk < chunks) {
      // From a cell of one's own on, so that the lanes read from different banks.
      for (int i = 0; i < 4; ++i)
        sum += double(sums.cell_sum[chunk * kLanes + (lane() + 8 * i) % kLanes]);
    }
    for (int d = 1; d < 8; d *= 2) sum += shuffle_xor(sum, d);
    if (lane() % 8 == 0 && chunk < chunks) sums.chunk_sum[chunk] = sum;
  }
}

// All of a row's chunks, dealt to the warps of its team.
template <int kWarps, class T, bool kCut, class Sums>
EDLM_DEVICE void read_row(const Row<T, kCut>& row, const Sums& sums) {
  EDLM_UNROLL(1)
  for (int c = Team<kWarps>::warp(); c < chunks_of(row.vocab); c += kWarps) sum_chunk(row, c, sums);
  sync_warp();
}

// A row's total over its chunks.
struct RowTotal {
  float reference;  // the row's largest logit
  double sum;    // of exp((logit - reference) / T); NaN if the row holds NaN or +inf, 0 if all -inf
  double log_z;  // its logarithm

  // With RowStatistics only.
  float second = 0;   // the row's second largest logit
  double moment = 0;  // sum of x exp(x), x = (logit - reference) / T
};

// One warp's work. Leaves the chunks' weights relative to the row's reference in chunk_sum.
template <class Row, class Sums>
EDLM_DEVICE RowTotal add_chunks(const Row& row, const Sums& sums) {
  const int chunks = chunks_of(row.vocab);
  float reference = -kInf, second = -kInf;
  EDLM_UNROLL(1)
  for (int c = lane(); c < chunks; c += kLanes) {
    const float top = sums.chunk_reference[c];
    if constexpr (Sums::kStatistics) {
      second = max_of(max_of(second, sums.chunk_second[c]), min_of(reference, top));
    }
    reference = max_of(reference, top);
  }
  const float lanes_own = reference;
  reference = warp_max(reference);
  if constexpr (Sums::kStatistics) second = warp_second(lanes_own, second, reference);
  double total = 0, moment = 0;
  EDLM_UNROLL(1)
  for (int begin = 0; begin < chunks; begin += kLanes) {
    const int c = begin + lane();
    double weight = 0;
    if (c < chunks) {
      const float top = sums.chunk_reference[c];
      // inf - inf must not hide which chunk was bad, nor make a chunk without tokens so.
      const float gap = top == reference || top == -kInf ? 0.0f : (top - reference) * row.scale;
      const float excess = ChunkScale(top, row.scale).excess(), factor = exp2_approx(gap - excess);
      weight = sums.chunk_sum[c] * factor;
      if constexpr (Sums::kStatistics) {
        if (weight > 0) moment += sums.chunk_moment[c] * double(factor) + (gap - excess) * weight;
      }
    }
    const double prefix = total + warp_prefix_sum(weight);
    if (c < chunks) {
      sums.chunk_sum[c] = weight;
      sums.chunk_prefix[c] = prefix;
    }
    total = shuffle(prefix, kLanes - 1);
  }
  if constexpr (Sums::kStatistics) {
    return {reference, total, log(total), second, warp_sum(moment) * 0.6931471805599453};
  } else {
    return {reference, total, log(total)};
  }
}

// For all the team, after the read: one warp adds, which leaves the others' share of the processor
// to other rows.
template <int kWarps, class Row, class Sums>
EDLM_DEVICE RowTotal row_total(const Row& row, const Sums& sums) {
  add_cells<kWarps>(chunks_of(row.vocab), sums);
  Team<kWarps>::sync();
  if constexpr (kWarps == 1) {
    const RowTotal total = add_chunks(row, sums);
    sync_warp();
    return total;
  } else {
    if (Team<kWarps>::warp() == 0) {
      const RowTotal total = add_chunks(row, sums);
      if (lane() == 0) {
        sums.total[0] = total.reference;
        sums.total[1] = total.sum;
        sums.total[2] = total.log_z;
        if constexpr (Sums::kStatistics) {
          sums.total[3] = total.second;
          sums.total[4] = total.moment;
        }
      }
    }
    sync_block();
    if constexpr (Sums::kStatistics) {
      return {float(sums.total[0]), sums.total[1], sums.total[2], float(sums.total[3]),
              sums.total[4]};
    } else {
      return {float(sums.total[0]), sums.total[1], sums.total[2]};
    }
  }
}

// The log-probability of a token, but for rounding never positive.
template <class Row>
EDLM_DEVICE double exact_log_prob(const Row& row, float logit, const RowTotal& total) {
  const double gap = double(logit) - double(total.reference);
  return gap * double(row.inv_temperature) - total.log_z;
}
// The same, never positive.
template <class Row>
EDLM_DEVICE float log_prob(const Row& row, float logit, const RowTotal& total) {
  const double value = exact_log_prob(row, logit, total);
  return float(value < 0 ? value : 0.0);
}

// Few rows: their chunks over many blocks, one chunk to a warp, to a workspace.
template <class T, class Args, class Sums>
EDLM_KERNEL(kSumThreads, kBlocks<T>)
sum_rows_kernel(Args args, double* workspace) {
  let_next_kernel_start();
  const int vocab = int(args.vocab);
  const int64_t task = (block_index() * block_threads() + thread_index()) / kLanes;
  const int64_t r = task / chunks_of(vocab);
  if (r >= args.rows) return;
  const SharedPtr<double> memory(workspace + r * read_size<Sums>(vocab));
  sum_chunk(RowOf<T, Args>::at(args, r), int(task % chunks_of(vocab)),
            sums_at<Sums>(memory, memory, vocab));
}

}  // namespace edlm::cuda
