// The kernels that advance a generation in place, run by the SIMT machine, against the CPU's.
#include <cmath>
#include <cstdio>
#include <limits>
#include <random>
#include <string>
#include <vector>

#include "place_candidates.cu"
#include "reveal_chosen.cu"
#include "sum_log_probs.cu"

namespace {

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();

int failures = 0;

void expect(bool holds, const std::string& what) {
  if (holds) return;
  if (++failures <= 40) std::printf("FAILED: %s\n", what.c_str());
}

void expect_no_faults(const std::string& what) {
  for (const std::string& fault : simt::faults()) expect(false, what + ": " + fault);
  simt::faults().clear();
}

bool same(const std::vector<float>& a, const std::vector<float>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (!(a[i] == b[i] || (std::isnan(a[i]) && std::isnan(b[i])))) return false;
  }
  return a.size() == b.size();
}

bool close(const std::vector<float>& a, const std::vector<float>& b) {
  for (size_t i = 0; i < a.size(); ++i) {
    if (!(std::fabs(a[i] - b[i]) <= 1e-6f * std::fabs(b[i]))) return false;
  }
  return a.size() == b.size();
}

// Some places of some sequences, in order.
struct Places {
  std::vector<int64_t> flat, starts, rows;

  Places(int64_t sequences, int64_t length, int64_t batch, std::mt19937& engine) {
    starts.push_back(13);
    for (int64_t i = 0; i < sequences; ++i) {
      for (int64_t l = 0; l < length; ++l) {
        if (engine() % 3 == 0) flat.push_back(i * length + l);
      }
      starts.push_back(13 + int64_t(flat.size()));
      rows.push_back((i * 5 + 2) % batch);
    }
  }
};

std::vector<int64_t> integers(int64_t count, int64_t below, std::mt19937& engine) {
  std::vector<int64_t> values(count);
  for (int64_t& value : values) value = engine() % below;
  return values;
}

void place_candidates() {
  const int64_t batch = 7;
  for (const int64_t length : {1, 40, 700}) {
    for (const int64_t candidates : {1, 3, 8}) {
      for (const int64_t scored : {0, 2, 5}) {
        const int64_t sequences = scored == 2 ? 4 : 5;
        std::mt19937 engine{unsigned(length + candidates)};
        const Places places(sequences, length, batch, engine);
        const int64_t draws = int64_t(places.flat.size());
        std::vector<int64_t> tokens = integers(draws * candidates, 50, engine);
        std::vector<float> log_q(draws * candidates);
        for (float& value : log_q) value = -float(engine() % 1000003) * 1e-5f;
        for (int64_t k = 0; draws > 1 && k < candidates; ++k) {
          tokens[(draws - 1) * candidates + k] = -1;
          log_q[(draws - 1) * candidates + k] = kNaN;
        }
        const std::vector<int64_t> before = integers(batch * length, 90, engine);
        std::vector<int64_t> xt[2], x0[2], canvas[2], failed[2];
        std::vector<float> sums[2];
        for (int side = 0; side < 2; ++side) {
          xt[side].assign(scored * length, -7);
          x0[side].assign(scored * candidates * length, -7);
          sums[side].assign(scored * candidates, -7);
          canvas[side] = before;
          failed[side].assign(batch, 0);
          const edlm::PlaceCandidatesArgs args = {.tokens = tokens.data(),
                                                  .log_q = log_q.data(),
                                                  .places = places.flat.data(),
                                                  .starts = places.starts.data(),
                                                  .rows = places.rows.data(),
                                                  .sequences = sequences,
                                                  .scored = scored,
                                                  .candidates = candidates,
                                                  .length = length,
                                                  .first_position = 3,
                                                  .xt = xt[side].data(),
                                                  .x0 = x0[side].data(),
                                                  .sums = sums[side].data(),
                                                  .canvas = canvas[side].data(),
                                                  .failed = failed[side].data()};
          expect(bool(side ? edlm::cuda::place_candidates(args, nullptr)
                           : edlm::cpu::place_candidates(args, 0, sequences)),
                 "status of place_candidates");
        }
        const std::string what = "place_candidates, length " + std::to_string(length) + ", " +
                                 std::to_string(candidates) + " candidates, " +
                                 std::to_string(scored) + " scored: ";
        expect(xt[0] == xt[1] && x0[0] == x0[1], what + "x0");
        expect(same(sums[0], sums[1]), what + "sums");
        expect(canvas[0] == canvas[1], what + "canvas");
        expect(failed[0] == failed[1], what + "failed");
        expect((draws > 1) == (failed[1] != std::vector<int64_t>(batch, 0)), what + "noted");
        expect_no_faults(what);
      }
    }
  }
}

void reveal_chosen() {
  const int64_t batch = 7, width = 3, sequences = 5;
  for (const int64_t length : {1, 40, 700}) {
    for (const int64_t candidates : {1, 2, 8, 33, 100}) {
      std::mt19937 engine{unsigned(length + candidates)};
      std::normal_distribution<float> normal(700, 3);
      const Places places(sequences, length, batch, engine);
      std::vector<float> energy(sequences * candidates);
      for (float& value : energy) value = normal(engine);
      if (candidates > 2) energy[candidates + 1] = kInf;
      const std::vector<int64_t> keys = integers(sequences, 1 << 30, engine);
      const std::vector<int64_t> x0 = integers(sequences * candidates * length, 90, engine);
      const std::vector<int64_t> columns = integers(sequences, width, engine);
      std::vector<int64_t> choice[3], canvas[3], failed[3];
      std::vector<float> ess[3], log_z[3];
      for (int side = 0; side < 3; ++side) {
        if (side == 2) energy[2 * candidates] = kNaN;
        choice[side].assign(sequences, -7);
        canvas[side].assign(batch * length, 200);
        failed[side].assign(batch, 0);
        ess[side].assign(batch * width, -7);
        log_z[side].assign(batch * width, -7);
        const edlm::RevealChosenArgs args = {.energy = energy.data(),
                                             .temperature = 1.5f,
                                             .keys = keys.data(),
                                             .x0 = x0.data(),
                                             .places = places.flat.data(),
                                             .starts = places.starts.data(),
                                             .rows = places.rows.data(),
                                             .columns = columns.data(),
                                             .sequences = sequences,
                                             .candidates = candidates,
                                             .length = length,
                                             .width = width,
                                             .choice = choice[side].data(),
                                             .canvas = canvas[side].data(),
                                             .ess = ess[side].data(),
                                             .log_z = log_z[side].data(),
                                             .failed = failed[side].data()};
        expect(bool(side ? edlm::cuda::reveal_chosen(args, nullptr)
                         : edlm::cpu::reveal_chosen(args, 0, sequences)),
               "status of reveal_chosen");
      }
      const std::string what = "reveal_chosen, length " + std::to_string(length) + ", " +
                               std::to_string(candidates) + " candidates: ";
      expect(choice[0] == choice[1], what + "choice");
      expect(canvas[0] == canvas[1], what + "canvas");
      expect(close(ess[0], ess[1]) && close(log_z[0], log_z[1]), what + "diagnostics");
      expect(failed[1] == std::vector<int64_t>(batch, 0), what + "nothing noted");

      // Bad weights reveal candidate 0 of their own sequence, and are noted.
      const int64_t row = places.rows[2], at = row * width + columns[2];
      expect(choice[2][2] == -1 && std::isnan(ess[2][at]) && std::isnan(log_z[2][at]),
             what + "bad weights");
      std::vector<int64_t> wanted(batch, 0), after = canvas[1];
      wanted[row] = 1;
      for (int64_t r = places.starts[2] - 13; r < places.starts[3] - 13; ++r) {
        const int64_t position = places.flat[r] - 2 * length;
        after[row * length + position] = x0[2 * candidates * length + position];
      }
      expect(failed[2] == wanted && canvas[2] == after, what + "bad weights beside good ones");
      expect_no_faults(what);
    }
  }
}

void sum_log_probs() {
  std::mt19937 engine{1};
  std::vector<float> log_probs(3000);
  for (float& value : log_probs) value = -std::exp(float(engine() % 3000) * 0.01f - 25);
  const std::vector<int64_t> starts = {7, 7, 300, 301, 2999};
  for (const int64_t* some : {starts.data(), static_cast<const int64_t*>(nullptr)}) {
    for (const int64_t sequences : {1, 4}) {
      std::vector<double> sums[2];
      for (int side = 0; side < 2; ++side) {
        sums[side].assign(sequences, 7);
        const edlm::SumLogProbsArgs args = {log_probs.data(), some, 3000, sequences,
                                            sums[side].data()};
        expect(bool(side ? edlm::cuda::sum_log_probs(args, nullptr)
                         : edlm::cpu::sum_log_probs(args, 0, sequences)),
               "status of sum_log_probs");
      }
      expect(sums[0] == sums[1], "sum_log_probs");
    }
  }
  expect_no_faults("sum_log_probs");
}

}  // namespace

int main() {
  place_candidates();
  reveal_chosen();
  sum_log_probs();
  std::printf(failures ? "%d checks failed\n" : "all checks passed\n", failures);
  return failures != 0;
}
