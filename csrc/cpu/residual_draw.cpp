// residual_draw on the CPU: one vectorised read of both rows, and seldom a second.
#include "edlm/residual_draw.h"

#include <algorithm>
#include <cmath>
#include <vector>

#include "row_sampler.h"

namespace edlm::cpu {
namespace {

struct Distribution {
  Row row;
  RowTotal total;

  // -inf for a token beyond the row's vocabulary, or forbidden.
  double log_prob(int64_t id) const {
    if (id >= row.vocab || id == row.forbidden_id) return -HUGE_VAL;
    const double gap = double(logit_at(row, id)) - double(total.reference);
    return gap * double(row.inv_temperature) - total.log_z;
  }

  // probs[i] = probability of begin + i for i in [0, kCell), 0 beyond the row's vocabulary.
  void probs(int64_t begin, double* probs) const {
    alignas(64) float weights[kCell];
    const int64_t count = std::clamp(row.vocab - begin, int64_t{0}, kCell);
    if (count) row_pass().weights(row, begin, count, total.reference, weights);
    for (int64_t i = count; i < kCell; ++i) weights[i] = 0;
    const double unit = 1 / total.sum;
    for (int64_t i = 0; i < kCell; ++i) probs[i] = double(weights[i]) * unit;
  }
};

Row row_of(const LogitRows& rows, int64_t r) {
  return {row_at(rows.logits, rows.dtype, r, rows.row_stride), rows.dtype, rows.vocab,
          rows.forbidden_id, 1.0f / rows.temperature};
}

Code code_of(const RowTotal& total) {
  return std::isnan(total.sum) ? Code::kNotANumber : total.sum > 0 ? Code::kOk : Code::kNothingLeft;
}

// (p - q)+ in the cell of p that begins at `begin`.
void residual_cell(const Distribution& p, const Distribution& q, int64_t begin, CellWeights* cell) {
  double p_probs[kCell], q_probs[kCell];
  p.probs(begin, p_probs);
  q.probs(begin, q_probs);
  cell->count = std::min(kCell, p.row.vocab - begin);
  for (int64_t i = 0; i < kCell; ++i) {
    cell->weight[i] = float(std::max(0.0, p_probs[i] - q_probs[i]));
  }
  cell->add_groups();
}

// A token of the residual by a second read of both rows; -1 where rounding leaves none of it.
int64_t draw_summed(const Distribution& p, const Distribution& q, double u,
                    std::vector<double>& cell_sum) {
  CellWeights cell;
  double total = 0;
  for (size_t i = 0; i < cell_sum.size(); ++i) {
    residual_cell(p, q, int64_t(i) * kCell, &cell);
    total += cell_sum[i] = cell.sum;
  }
  if (!(total > 0)) return -1;
  const Pick picked = pick(cell_sum.data(), int64_t(cell_sum.size()), total, u);
  residual_cell(p, q, picked.index * kCell, &cell);
  return picked.index * kCell + cell.token(picked.share);
}

int64_t draw_residual(const Distribution& p, const Distribution& q, const RowScratch& p_sums,
                      int64_t key, std::vector<double>& cell_sum) {
  RowSampler sampler(p.row, p_sums, row_pass().cell);
  int64_t first = -1;
  for (int i = 0; i < kResidualTries; ++i) {
    const int64_t token = sampler.draw(residual_uniform(key, i + 1, ResidualUse::kDraw));
    if (keeps_try(key, i, p.log_prob(token), q.log_prob(token))) return token;
    if (i == 0) first = token;
  }
  const double u = residual_uniform(key, kResidualSummed, ResidualUse::kDraw);
  const int64_t token = draw_summed(p, q, u, cell_sum);
  return token >= 0 ? token : first;
}

}  // namespace

Status residual_draw(const ResidualDrawArgs& args, int64_t begin, int64_t end) {
  RowScratch p_sums(args.p.vocab), q_sums(args.q.vocab);
  std::vector<double> cell_sum(ceil_div(args.p.vocab, kCell));
  for (int64_t r = begin; r < end; ++r) {
    Distribution p = {row_of(args.p, r), {}}, q = {row_of(args.q, r), {}};
    // One pass for both, though q's cells are not asked for: what is equal stays so to the last
    // bit.
    row_pass().sum(p.row, p_sums.sums(p.row.vocab));
    p.total = p_sums.total(p.row.inv_temperature);
    row_pass().sum(q.row, q_sums.sums(q.row.vocab));
    q.total = q_sums.total(q.row.inv_temperature);
    if (const Code code = code_of(p.total); code != Code::kOk) return {code, r, 0};
    if (const Code code = code_of(q.total); code != Code::kOk) return {code, r, 1};
    const int64_t draft = args.draft[r], key = args.keys[r];
    if (draft < 0 || draft >= q.row.vocab) return {Code::kBadTarget, r, 2};

    const bool accepted = takes_draft(key, p.log_prob(draft), q.log_prob(draft));
    const int64_t token = accepted ? draft : draw_residual(p, q, p_sums, key, cell_sum);
    args.tokens[r] = token;
    args.accepted[r] = accepted;
    args.log_p[r] = float(std::min(0.0, p.log_prob(token)));
  }
  return {};
}

}  // namespace edlm::cpu
