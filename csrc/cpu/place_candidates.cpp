// place_candidates on the CPU.
#include "edlm/place_candidates.h"

#include <algorithm>
#include <vector>

namespace edlm::cpu {
namespace {

void complete(const PlaceCandidatesArgs& args, int64_t i, std::vector<double>& sums) {
  const int64_t* const xt = args.canvas + args.rows[i] * args.length;
  int64_t* const x0 = args.x0 + i * args.candidates * args.length;
  std::copy(xt, xt + args.length, args.xt + i * args.length);
  for (int64_t k = 0; k < args.candidates; ++k) {
    std::copy(xt, xt + args.length, x0 + k * args.length);
  }
  std::fill(sums.begin(), sums.end(), 0.0);
  for (int64_t r = args.begin(i); r < args.end(i); ++r) {
    const int64_t position = args.places[r] - i * args.length;
    for (int64_t k = 0; k < args.candidates; ++k) {
      const int64_t token = args.tokens[r * args.candidates + k];
      x0[k * args.length + position] = std::max<int64_t>(token, 0);
      if (token < 0) args.failed[args.rows[i]] = 1;
    }
    if (position < args.first_position) continue;
    for (int64_t k = 0; k < args.candidates; ++k) {
      sums[k] += on_grid(args.log_q[r * args.candidates + k]);
    }
  }
  std::copy(sums.begin(), sums.end(), args.sums + i * args.candidates);
}

void reveal(const PlaceCandidatesArgs& args, int64_t i) {
  int64_t* const canvas = args.canvas + args.rows[i] * args.length;
  for (int64_t r = args.begin(i); r < args.end(i); ++r) {
    const int64_t token = args.tokens[r * args.candidates];
    canvas[args.places[r] - i * args.length] = std::max<int64_t>(token, 0);
    if (token < 0) args.failed[args.rows[i]] = 1;
  }
}

}  // namespace

Status place_candidates(const PlaceCandidatesArgs& args, int64_t begin, int64_t end) {
  std::vector<double> sums(args.candidates);
  for (int64_t i = begin; i < end; ++i) {
    if (i < args.scored) {
      complete(args, i, sums);
    } else {
      reveal(args, i);
    }
  }
  return {};
}

}  // namespace edlm::cpu
