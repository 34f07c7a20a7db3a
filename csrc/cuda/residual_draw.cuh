// residual_draw on CUDA: one read of both rows, tries down the sums of p, and seldom a second read.
#pragma once

#include "edlm/residual_draw.h"
#include "row_draw.cuh"

namespace edlm::cuda {

struct PairSums {
  RowSums p, q;
};

// As team_sums(), of two rows; in a workspace, those of all rows of p come first.
template <int kWarps, bool kSplit>
EDLM_DEVICE PairSums pair_sums(const ResidualDrawArgs& args, double* workspace) {
  const int p = int(args.p.vocab), q = int(args.q.vocab);
  const int made_p = sums_size(p), made = made_p + sums_size(q);
  const int read_p = read_size(p), read = read_p + read_size(q);
  const SharedPtr<double> shared =
      dynamic_shared() + Team<kWarps>::place() * (made + (kSplit ? 0 : read));
  if constexpr (kSplit) {
    const int64_t r = Team<kWarps>::row();
    double* const reads_q = workspace + args.p.rows * read_p;
    return {sums_at(SharedPtr<double>(workspace + r * read_p), shared, p),
            sums_at(SharedPtr<double>(reads_q + r * (read - read_p)), shared + made_p, q)};
  } else {
    return {sums_at(shared + made, shared, p), sums_at(shared + made + read_p, shared + made_p, q)};
  }
}

template <class T>
struct Distribution {
  Row<T> row;
  RowTotal total;

  // -inf for a token beyond the row's vocabulary, or forbidden.
  EDLM_DEVICE double log_prob(int id) const { return exact_log_prob(row, row.logit(id), total); }
};

struct Tried {
  int token;  // the first that was kept as one of the residual; -1 for none
  int first;  // the first that was drawn
};

// Draws from p until one is kept: by a warp, or for short rows all tries at once, a lane each.
template <int kWarps, class T>
EDLM_DEVICE Tried try_residual(const Distribution<T>& p, const Distribution<T>& q,
                               const RowSums& p_sums, int64_t key) {
  static_assert(kResidualTries == kLanes);
  const double u = residual_uniform(key, lane() + 1, ResidualUse::kDraw);
  const auto keeps = [&](int i, int token) {
    return keeps_try(key, i, p.log_prob(token), q.log_prob(token));
  };
  if constexpr (kWarps == 1) {
    const int token = lane_draw(p.row, p_sums, u).token;
    const uint32_t kept = ballot(keeps(lane(), token));
    const int chosen = shuffle(token, kept ? lowest_bit(kept) : 0);
    return {kept ? chosen : -1, shuffle(token, 0)};
  } else {
    int first = -1;
    EDLM_UNROLL(1)
    for (int i = 0; i < kResidualTries; ++i) {
      const int token = warp_draw(p.row, p_sums, p.total, shuffle(u, i)).token;
      if (i == 0) first = token;
      if (keeps(i, token)) return {token, first};
    }
    return {-1, first};
  }
}

// A token's part of (p - q)+.
template <class T>
struct Residual {
  const Distribution<T>&p, &q;
  ChunkScale p_scale{p.total.reference, p.row.scale}, q_scale{q.total.reference, q.row.scale};
  double p_unit = unit(p, p_scale), q_unit = unit(q, q_scale);

  // The probability of a token of weight 1.
  EDLM_DEVICE static double unit(const Distribution<T>& of, const ChunkScale& scale) {
    return exp2(-double(scale.excess())) * reciprocal(of.total.sum);
  }
  EDLM_DEVICE double operator()(int id) const {
    const double p_prob = double(p_scale.weight(p.row.logit(id))) * p_unit;
    const double q_prob = double(q_scale.weight(q.row.logit(id))) * q_unit;
    return p_prob > q_prob ? p_prob - q_prob : 0.0;
  }
};

// A second read of both rows, by the whole team: sums of the residual by cell and chunk, in the
// place of p's.
template <int kWarps, class T>
EDLM_DEVICE void sum_residual(const Residual<T>& residual, const RowSums& sums) {
  EDLM_UNROLL(1)
  for (int c = Team<kWarps>::warp(); c < chunks_of(residual.p.row.vocab); c += kWarps) {
    double chunk = 0;
    EDLM_UNROLL(1)
    for (int cell = c * kLanes; cell < (c + 1) * kLanes; ++cell) {
      const float sum = float(warp_sum(residual(cell * kLanes + lane())));
      if (lane() == 0) sums.cell_sum[cell] = sum;
      chunk += double(sum);
    }
    if (lane() == 0) sums.chunk_sum[c] = chunk;
  }
  Team<kWarps>::sync();
}

// One warp's draw from those sums; -1 where rounding leaves none of the residual.
template <class T>
EDLM_DEVICE int draw_summed(const Residual<T>& residual, const RowSums& sums, double u) {
  const int chunks = chunks_of(residual.p.row.vocab);
  double total = 0;
  EDLM_UNROLL(1)
  for (int c = lane(); c < chunks; c += kLanes) total += sums.chunk_sum[c];
  total = warp_sum(total);
  if (!(total > 0)) return -1;
  const auto chunk_sum = [&](int64_t c) { return double(sums.chunk_sum[c]); };
  const Pick chunk = warp_pick(chunks, total, u, chunk_sum);
  const int first_cell = int(chunk.index) * kLanes;
  const Pick cell = warp_pick(double(sums.cell_sum[first_cell + lane()]), chunk.share);
  const int first = (first_cell + int(cell.index)) * kLanes;
  return first + int(warp_pick(residual(first + lane()), cell.share).index);
}

// As kBlocks, but that short rows, each with two distributions to a warp, take more registers.
template <class T, int kWarps>
inline constexpr int kPairBlocks = kWarps == 1 && kBlocks<T> > 3 ? 3 : kBlocks<T>;

// `kSplit`: sum_rows_kernel has read the rows, into `workspace`.
template <class T, int kWarps, bool kSplit>
EDLM_KERNEL(Team<kWarps>::kThreads, kPairBlocks<T, kWarps>)
residual_draw_kernel(ResidualDrawArgs args, double* workspace) {
  const int64_t r = Team<kWarps>::row();
  if (r >= args.p.rows) return;
  const int64_t draft = args.draft[r], key = args.keys[r];
  Distribution<T> p = {row_of<T>(args.p, r), {}}, q = {row_of<T>(args.q, r), {}};
  const PairSums sums = pair_sums<kWarps, kSplit>(args, workspace);
  if constexpr (kSplit) {
    wait_for_previous_kernel();
  } else {
    read_row<kWarps>(p.row, sums.p);
    read_row<kWarps>(q.row, sums.q);
  }
  p.total = row_total<kWarps>(p.row, sums.p);
  q.total = row_total<kWarps>(q.row, sums.q);

  const bool leads = Team<kWarps>::warp() == 0;
  const auto write = [&](int token, bool accepted) {
    if (!leads || lane() != 0) return;
    args.tokens[r] = token;
    args.accepted[r] = accepted;
    args.log_p[r] = token < 0 ? kNaN : log_prob(p.row, p.row.logit(token), p.total);
  };
  if (!(p.total.sum > 0 && q.total.sum > 0 && draft >= 0 && draft < q.row.vocab)) {
    return write(-1, false);
  }
  if (takes_draft(key, p.log_prob(int(draft)), q.log_prob(int(draft)))) {
    return write(int(draft), true);
  }
  Tried tried = {-1, -1};
  if (leads) tried = try_residual<kWarps>(p, q, sums.p, key);
  if (tried.token >= 0) write(tried.token, false);
  Team<kWarps>::sync();
  // Told to the others where the total of q was, which all have read.
  if (leads && lane() == 0) sums.q.total[0] = tried.token;
  Team<kWarps>::sync();
  if (sums.q.total[0] >= 0) return;

  const Residual<T> residual = {p, q};
  sum_residual<kWarps>(residual, sums.p);
  if (!leads) return;
  const double u = residual_uniform(key, kResidualSummed, ResidualUse::kDraw);
  const int token = draw_summed(residual, sums.p, u);
  write(token < 0 ? tried.first : token, false);
}

}  // namespace edlm::cuda
