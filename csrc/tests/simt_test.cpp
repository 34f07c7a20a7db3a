// Every CUDA kernel, run by the SIMT machine and compared with the CPU op on the same inputs.
//
// Called with the name of a case it runs that one. The build compiles this file once more against
// each changed copy of csrc/cuda: broken ones, where the case that names the fault must fail, and
// ones with what no GPU has run yet.
#include "simt.h"

#include <sys/mman.h>

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "edlm/row_sampling.h"
#include "resample.cu"
#include "residual_draw.cu"
#include "reveal_steps.cu"
#include "sample_candidates.cu"
#include "sample_weights.cu"
#include "stream_keys.cu"
#include "token_log_probs.cu"

namespace {

using edlm::DType;
using edlm::Status;

constexpr float kInf = std::numeric_limits<float>::infinity();
constexpr float kNaN = std::numeric_limits<float>::quiet_NaN();
constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16};

int failures = 0;

void expect(bool holds, const std::string& what) {
  if (holds) return;
  if (++failures <= 40) std::printf("FAILED: %s\n", what.c_str());
}

// Reports what the SIMT machine saw since the last call.
void expect_no_faults(const std::string& what) {
  for (const std::string& fault : simt::faults()) expect(false, what + ": " + fault);
  simt::faults().clear();
}

uint16_t bfloat16(float value) {
  uint32_t bits = edlm::to_bits(value);
  if (value == value) bits += 0x7fff + (bits >> 16 & 1);
  return uint16_t(bits >> 16);
}

// For values of fp16's normal range, zero, infinity and NaN.
uint16_t float16(float value) {
  const uint32_t bits = edlm::to_bits(value);
  const uint16_t sign = uint16_t(bits >> 16 & 0x8000);
  if (value != value) return 0x7e00;
  if (std::fabs(value) >= 65520) return sign | 0x7c00;
  if (std::fabs(value) < 6.2e-5f) return sign;
  const uint32_t rounded = (bits & 0x7fffffff) + 0xfff + (bits >> 13 & 1);
  return sign | uint16_t((rounded >> 13) - (112 << 10));
}

// A matrix of logits at any byte offset, with NaN between the rows. Exactly as large as it must be,
// so that AddressSanitizer sees a read before its first or after its last element.
struct Matrix {
  DType dtype;
  int64_t rows, vocab, row_stride;
  std::unique_ptr<char[]> memory;
  char* logits;

  Matrix(DType dtype, int64_t rows, int64_t vocab, int64_t gap, int64_t offset)
      : dtype(dtype), rows(rows), vocab(vocab), row_stride(vocab + gap) {
    const int64_t size = edlm::size_of(dtype);
    const int64_t elements = rows ? (rows - 1) * row_stride + vocab : 0;
    memory = std::make_unique<char[]>((offset + elements) * size);
    logits = memory.get() + offset * size;
    for (int64_t i = 0; i < elements; ++i) put(i, kNaN);
  }
  void put(int64_t i, float value) {
    const uint16_t half = dtype == DType::kBFloat16 ? bfloat16(value) : float16(value);
    if (dtype == DType::kFloat32) {
      memcpy(logits + 4 * i, &value, 4);
    } else {
      memcpy(logits + 2 * i, &half, 2);
    }
  }
  float get(int64_t row, int64_t id) const {
    const char* const at = logits + (row * row_stride + id) * edlm::size_of(dtype);
    if (dtype == DType::kFloat32) return *reinterpret_cast<const float*>(at);
    const uint16_t half = *reinterpret_cast<const uint16_t*>(at);
    return dtype == DType::kBFloat16 ? edlm::to_float(edlm::BFloat16{half})
                                     : edlm::to_float(edlm::Float16{half});
  }
  void set(int64_t row, int64_t id, float value) { put(row * row_stride + id, value); }
  void fill(float scale, unsigned seed) {
    std::mt19937 engine(seed);
    std::normal_distribution<float> normal(0, scale);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t v = 0; v < vocab; ++v) set(r, v, normal(engine));
    }
  }
};

std::string name_of(const Matrix& m, const std::string& more = "") {
  const char* const dtypes[] = {"fp32", "bf16", "fp16"};
  return std::string(dtypes[int(m.dtype)]) + " [" + std::to_string(m.rows) + ", " +
         std::to_string(m.vocab) + "] stride " + std::to_string(m.row_stride) + " " + more;
}

std::vector<int64_t> keys_for(int64_t count) {
  std::vector<int64_t> keys(count);
  for (int64_t i = 0; i < count; ++i) keys[i] = 0x1234567 + 77 * i;
  return keys;
}

struct Options {
  int64_t num_candidates = 3, forbidden_id = -1;
  float temperature = 1;
  double top_p = 1;
  int64_t top_k = 0;
  double min_p = 0;
  bool statistics = false;
};

struct Draws {
  std::vector<int64_t> tokens;
  std::vector<float> log_q, statistics;
  Status status = {};
};

struct Cpu {};
struct Cuda {};

Status run(Cpu, const edlm::SampleCandidatesArgs& args) {
  return edlm::cpu::sample_candidates(args, 0, args.rows);
}
Status run(Cpu, const edlm::SampleWeightsArgs& args) {
  return edlm::cpu::sample_weights(args, 0, args.rows);
}
Status run(Cpu, const edlm::TokenLogProbsArgs& args) {
  return edlm::cpu::token_log_probs(args, 0, args.rows);
}
Status run(Cuda, const edlm::SampleCandidatesArgs& args) {
  std::vector<double> workspace(edlm::cuda::sample_candidates_workspace(args) / 8, NAN);
  return edlm::cuda::sample_candidates(args, workspace.data(), nullptr);
}
Status run(Cuda, const edlm::SampleWeightsArgs& args) {
  std::vector<double> workspace(edlm::cuda::sample_weights_workspace(args) / 8, NAN);
  return edlm::cuda::sample_weights(args, workspace.data(), nullptr);
}
Status run(Cuda, const edlm::TokenLogProbsArgs& args) {
  std::vector<double> workspace(edlm::cuda::token_log_probs_workspace(args) / 8, NAN);
  return edlm::cuda::token_log_probs(args, workspace.data(), nullptr);
}

// Draws from rows [first, first + rows).
template <class Backend>
Draws sample(Backend backend, const Matrix& m, const Options& o, int64_t first, int64_t rows) {
  const std::vector<int64_t> keys = keys_for(m.rows);
  Draws draws = {std::vector<int64_t>(rows * o.num_candidates, -7),
                 std::vector<float>(rows * o.num_candidates, 7),
                 std::vector<float>(rows * 3, 7),
                 {}};
  draws.status = run(
      backend,
      edlm::SampleCandidatesArgs{.logits = m.logits + first * m.row_stride * edlm::size_of(m.dtype),
                                 .dtype = m.dtype,
                                 .rows = rows,
                                 .vocab = m.vocab,
                                 .row_stride = m.row_stride,
                                 .keys = keys.data() + first,
                                 .num_candidates = o.num_candidates,
                                 .forbidden_id = o.forbidden_id,
                                 .temperature = o.temperature,
                                 .top_k = o.top_k,
                                 .top_p = o.top_p,
                                 .min_p = o.min_p,
                                 .tokens = draws.tokens.data(),
                                 .log_q = draws.log_q.data(),
                                 .statistics = o.statistics ? draws.statistics.data() : nullptr});
  return draws;
}
template <class Backend>
Draws sample(Backend backend, const Matrix& m, const Options& o) {
  return sample(backend, m, o, 0, m.rows);
}

template <class Backend>
std::vector<float> score(Backend backend, const Matrix& m, const Options& o,
                         const std::vector<int64_t>& targets) {
  std::vector<float> log_probs(m.rows, 7);
  const Status status = run(backend, edlm::TokenLogProbsArgs{.logits = m.logits,
                                                             .dtype = m.dtype,
                                                             .rows = m.rows,
                                                             .vocab = m.vocab,
                                                             .row_stride = m.row_stride,
                                                             .targets = targets.data(),
                                                             .forbidden_id = o.forbidden_id,
                                                             .temperature = o.temperature,
                                                             .log_probs = log_probs.data()});
  expect(bool(status), "status of token_log_probs");
  return log_probs;
}

bool close(float a, float b) { return a == b || std::fabs(a - b) <= 2e-6f + 2e-7f * std::fabs(b); }

// The first row so often that it is no longer cut at its chunks: the same to the bit.
void agree_in_numbers(const Matrix& m, const Options& o, const Draws& few) {
  const int64_t wave = edlm::size_of(m.dtype) == 4 ? edlm::cuda::kBlocks<float>
                                                   : edlm::cuda::kBlocks<edlm::BFloat16>;
  const int64_t rows = edlm::cuda::kManyWaves * wave, k = o.num_candidates;
  const std::vector<int64_t> keys(rows, keys_for(1)[0]);
  std::vector<int64_t> tokens(rows * k, -7);
  std::vector<float> log_q(rows * k, 7), statistics(rows * 3, 7);
  const edlm::SampleCandidatesArgs args = {
      .logits = m.logits,
      .dtype = m.dtype,
      .rows = rows,
      .vocab = m.vocab,
      .row_stride = 0,
      .keys = keys.data(),
      .num_candidates = k,
      .forbidden_id = o.forbidden_id,
      .temperature = o.temperature,
      .top_k = o.top_k,
      .top_p = o.top_p,
      .min_p = o.min_p,
      .tokens = tokens.data(),
      .log_q = log_q.data(),
      .statistics = o.statistics ? statistics.data() : nullptr};
  expect(edlm::cuda::sample_candidates_workspace(args) == 0, "many rows are not cut");
  expect(bool(run(Cuda{}, args)), "status of many rows");
  for (int64_t i = 0; i < rows * k; ++i) {
    expect(tokens[i] == few.tokens[i % k] && log_q[i] == few.log_q[i % k],
           "few rows and many agree to the bit, " + name_of(m));
  }
  for (int64_t i = 0; o.statistics && i < rows * 3; ++i) {
    expect(statistics[i] == few.statistics[i % 3],
           "statistics of few rows and many agree to the bit, " + name_of(m));
  }
}

// Draws do not depend on whether statistics are wanted, which are those of the CPU.
void statistics_agree(const Matrix& m, Options o, const Draws& without, const std::string& what) {
  o.statistics = true;
  const Draws cpu = sample(Cpu{}, m, o), cuda = sample(Cuda{}, m, o);
  expect(cuda.tokens == without.tokens && cuda.log_q == without.log_q,
         "draws with statistics, " + what);
  for (int64_t i = 0; i < 3 * m.rows; ++i) {
    const float got = cuda.statistics[i], want = cpu.statistics[i];
    expect(i % 3 ? close(got, want) : std::fabs(got - want) <= 1e-5f,
           "statistic " + std::to_string(i % 3) + ", " + what + ": " + std::to_string(got) +
               " and " + std::to_string(want));
  }
  const bool cut = o.top_p < 1 || o.top_k || o.min_p > 0;
  if (!cut && m.rows && m.vocab > edlm::cuda::kShortRow && m.vocab < 5'000) {
    agree_in_numbers(m, o, cuda);
  }
}

// Draws and scores of both backends agree. One draw may lie within rounding of a boundary.
void agree(const Matrix& m, const Options& o, const std::string& more = "") {
  const std::string what = name_of(m, more);
  const Draws cpu = sample(Cpu{}, m, o), cuda = sample(Cuda{}, m, o);
  expect(bool(cpu.status) && bool(cuda.status), "status of sample_candidates, " + what);
  int different = 0;
  for (size_t i = 0; i < cpu.tokens.size(); ++i) {
    const bool same = cpu.tokens[i] == cuda.tokens[i];
    different += !same;
    expect(cuda.tokens[i] >= 0 && cuda.tokens[i] < m.vocab && cuda.log_q[i] <= 0,
           "token and log_q in range, " + what);
    if (same) {
      expect(close(cuda.log_q[i], cpu.log_q[i]), "log_q, " + what + ": " +
                                                     std::to_string(cuda.log_q[i]) + " and " +
                                                     std::to_string(cpu.log_q[i]));
    }
  }
  expect(different <= 1, "tokens, " + what);
  std::vector<int64_t> targets(m.rows);
  for (int64_t r = 0; r < m.rows; ++r) targets[r] = (r * 7919 + m.vocab - 1) % m.vocab;
  const std::vector<float> want = score(Cpu{}, m, o, targets), got = score(Cuda{}, m, o, targets);
  for (int64_t r = 0; r < m.rows; ++r) expect(close(got[r], want[r]), "log_probs, " + what);
  if (o.top_p == 1 && o.top_k == 0 && o.min_p == 0 && m.rows) {
    for (int64_t r = 0; r < m.rows; ++r) targets[r] = cuda.tokens[r * o.num_candidates];
    const std::vector<float> again = score(Cuda{}, m, o, targets);
    for (int64_t r = 0; r < m.rows; ++r) {
      expect(again[r] == cuda.log_q[r * o.num_candidates], "log_q is the score, " + what);
    }
  }
  if (m.rows && m.vocab > edlm::cuda::kShortRow && m.vocab < 100'000) agree_in_numbers(m, o, cuda);
  statistics_agree(m, o, cuda, what);
  expect_no_faults(what);
}

void shapes_and_dtypes() {
  for (const DType dtype : kDTypes) {
    for (const int64_t vocab : {1, 7, 28, 127, 128, 4096, 4097, 50258}) {
      const int64_t rows = vocab > 10000 ? 2 : 5;
      for (const int64_t gap : {0, 3}) {
        if (gap && vocab == 4096) continue;
        Matrix m(dtype, rows, vocab, gap, gap ? 1 : 0);
        m.fill(3, unsigned(vocab + gap));
        agree(m, {});
      }
    }
  }
}

// Every phase of a row's first byte against 16, with rows that hold whole chunks and parts of some.
void unaligned_rows() {
  for (const DType dtype : kDTypes) {
    for (int64_t offset = 0; offset < 16 / edlm::size_of(dtype); ++offset) {
      Matrix m(dtype, 1, 3 * 1024 + 40, 0, offset);
      m.fill(3, 5);
      agree(m, {.num_candidates = 2}, "offset " + std::to_string(offset));
    }
  }
}

// Also more than a block's or a warp's uniforms at once.
void numbers_of_candidates() {
  for (const int64_t vocab : {28, 1500, 4500}) {
    const int64_t most = vocab < 100 ? 70 : 17;
    Matrix m(DType::kBFloat16, 3, vocab, 1, 1);
    m.fill(2, 9);
    const Draws all = sample(Cuda{}, m, {.num_candidates = most});
    for (int64_t k = 1; k <= most; k += most / 17) {
      const Options o = {.num_candidates = k};
      const Draws some = sample(Cuda{}, m, o);
      bool prefix = true;
      for (int64_t r = 0; r < m.rows; ++r) {
        for (int64_t j = 0; j < k; ++j) {
          prefix = prefix && some.tokens[r * k + j] == all.tokens[r * most + j] &&
                   some.log_q[r * k + j] == all.log_q[r * most + j];
        }
      }
      expect(prefix, "a candidate does not depend on K");
    }
    agree(m, {.num_candidates = most});
  }
  Matrix one(DType::kFloat32, 1, 4500, 0, 0);
  one.fill(2, 10);
  agree(one, {.num_candidates = 300}, "more candidates than threads");
}

void forbidden_tokens_and_temperatures() {
  for (const DType dtype : kDTypes) {
    for (const int64_t forbidden : {0, 1, 31, 32, 1023, 1024, 2047, 4499}) {
      Matrix m(dtype, 3, 4500, 1, 0);
      m.fill(3, 11);
      for (int64_t r = 0; r < m.rows; ++r) m.set(r, forbidden, r == 0 ? 50 : r == 1 ? kNaN : kInf);
      agree(m, {.forbidden_id = forbidden, .temperature = forbidden % 2 ? 0.7f : 1.9f},
            "forbidden " + std::to_string(forbidden));
    }
    for (const double temperature : {edlm::kMinTemperature, edlm::kMaxTemperature}) {
      Matrix m(dtype, 2, 4500, 0, 1);
      m.fill(3, 12);
      m.set(1, 17, dtype == DType::kFloat16 ? 6e4f : 3e38f);
      m.set(1, 18, dtype == DType::kFloat16 ? -6e4f : -3e38f);
      agree(m, {.forbidden_id = 3, .temperature = float(temperature)},
            "temperature " + std::to_string(temperature));
    }
  }
}

// Scaled references of any size: rounded into one multiply-add where that is harmless, else not.
void extreme_scales() {
  for (const int64_t vocab : {600, 6000}) {
    for (const float spread : {1e-3f, 1.0f, 1e6f}) {
      for (const float temperature : {1e-30f, 1e-4f, 0.05f, 1e4f, 1e30f}) {
        Matrix m(DType::kFloat32, 2, vocab, 1, 0);
        m.fill(spread, 17);
        for (int64_t v = 0; v < vocab; v += 3) m.set(1, v, -5000 * spread);
        agree(m, {.num_candidates = 4, .temperature = temperature},
              "spread " + std::to_string(spread) + " T " + std::to_string(temperature));
      }
    }
  }
}

void peaks_and_holes() {
  for (const int64_t vocab : {600, 6000}) {
    Matrix m(DType::kFloat32, 5, vocab, 0, 1);
    m.fill(1, 3);
    for (int64_t v = 0; v < vocab; ++v) {
      m.set(0, v, v == vocab - 1 ? 3e38f : v == 5 ? -3e38f : -kInf);
      m.set(1, v, v == vocab / 2 || v == vocab / 2 + 1 ? -1e30f : -kInf);
      m.set(2, v, float(v) * 0.05f);
      m.set(3, v, float(v) * -0.05f);
      m.set(4, v, v < vocab / 2 ? -kInf : -1000.0f + float(v % 3));
    }
    const Draws draws = sample(Cuda{}, m, {.num_candidates = 9});
    for (int64_t j = 0; j < 9; ++j) {
      expect(draws.tokens[j] == vocab - 1 && draws.log_q[j] == 0, "one token holds everything");
      expect(draws.tokens[9 + j] / 2 == vocab / 4 && close(draws.log_q[9 + j], -std::log(2.0f)),
             "two tokens share everything");
      expect(draws.tokens[4 * 9 + j] >= vocab / 2, "a token of weight 0 is never drawn");
    }
    agree(m, {.num_candidates = 9, .temperature = 0.8f}, "peaks and holes");
    expect_no_faults("peaks and holes");
  }
}

void nucleus() {
  for (const DType dtype : kDTypes) {
    for (const int64_t vocab : {1, 127, 4096, 4500}) {
      Matrix m(dtype, 2, vocab, 1, 1);
      m.fill(2, 21);
      for (const float top_p : {0.1f, 0.9f}) {
        agree(m, {.num_candidates = 5, .temperature = 1.3f, .top_p = top_p},
              "top_p " + std::to_string(top_p));
      }
    }
  }
  for (const DType dtype : kDTypes) {
    for (const float temperature : {1.0f, 1e4f, 1e30f}) {
      Matrix near(dtype, 1, 5000, 0, 1);
      near.fill(0, 0);
      near.set(0, 4321, 1e-4f);
      const Options argmax = {.temperature = temperature, .top_p = 1e-12f};
      for (const Draws& draws : {sample(Cpu{}, near, argmax), sample(Cuda{}, near, argmax)}) {
        for (int64_t j = 0; j < argmax.num_candidates; ++j) {
          expect(draws.tokens[j] == 4321 && std::fabs(draws.log_q[j]) < 1e-6f,
                 "a tiny nucleus is the best token, " + name_of(near));
        }
      }
    }
  }

  Matrix big(DType::kBFloat16, 1, 50258, 0, 1);
  big.fill(2, 22);
  agree(big, {.forbidden_id = 50257, .top_p = 0.8f}, "top_p of a large vocabulary");

  Matrix ties(DType::kFloat32, 2, 4, 0, 0);
  const float rows[2][4] = {{0, 2, 2, -1}, {-5, -0.0f, 0.0f, -9}};
  for (int64_t i = 0; i < 8; ++i) ties.put(i, rows[i / 4][i % 4]);
  const Draws draws = sample(Cuda{}, ties, {.num_candidates = 64, .top_p = 0.3f});
  bool seen[2][2] = {};
  for (int64_t i = 0; i < 128; ++i) {
    expect(draws.tokens[i] == 1 || draws.tokens[i] == 2, "the nucleus holds its ties alone");
    expect(close(draws.log_q[i], -std::log(2.0f)), "log_q of a tie");
    seen[i / 64][draws.tokens[i] == 2] = true;
  }
  expect(seen[0][0] && seen[0][1] && seen[1][0] && seen[1][1],
         "all of the nucleus's ties are kept");
  expect_no_faults("nucleus");
}

void cuts() {
  int turn = 0;
  for (const DType dtype : kDTypes) {
    for (const int64_t vocab : {1, 127, 4500}) {
      Matrix m(dtype, 1, vocab, 1, 1);
      m.fill(2, 25);
      for (const Options& o :
           {Options{.top_k = 1}, Options{.top_k = 7, .min_p = 0.1},
            Options{.temperature = 0.7f, .top_k = 900}, Options{.top_k = 100'000},
            Options{.min_p = 0.02}, Options{.forbidden_id = vocab - 1, .min_p = 1},
            Options{.top_p = 0.8, .top_k = 50},
            Options{.temperature = 1.8f, .top_p = 0.9, .top_k = 300, .min_p = 0.01}}) {
        // Every option for every dtype and shape would take long.
        if ((vocab == 1 && o.forbidden_id == 0) || (vocab == 4500 && turn++ % 3)) continue;
        agree(m, o,
              "top_k " + std::to_string(o.top_k) + " top_p " + std::to_string(o.top_p) + " min_p " +
                  std::to_string(o.min_p));
      }
    }
  }
  // Logits that one digit does not tell apart, or hardly; and ties, of which all are kept.
  Matrix m(DType::kFloat32, 4, 5000, 0, 0);
  for (int64_t v = 0; v < m.vocab; ++v) {
    const float place = float(v * 7919 % m.vocab);
    m.set(0, v, 1000 + place / 8192);
    m.set(1, v, place * 1e-7f - 1);
    m.set(2, v, (int64_t(place) % 2 ? -place - 1 : place + 1) * 1e34f);
    m.set(3, v, float(int64_t(place) / 40 - 60));
  }
  for (const int64_t top_k : {2, 41, 4999}) {
    for (const float temperature : {1.0f, 1e30f}) {
      const Draws draws =
          sample(Cuda{}, m, {.num_candidates = 24, .temperature = temperature, .top_k = top_k});
      for (int64_t r = 0; r < m.rows; ++r) {
        std::vector<float> logits;
        for (int64_t v = 0; v < m.vocab; ++v) logits.push_back(m.get(r, v));
        std::sort(logits.begin(), logits.end(), std::greater<>());
        const auto least = logits[top_k - 1];
        bool below = false;
        for (int64_t j = 0; j < 24; ++j) below |= m.get(r, draws.tokens[24 * r + j]) < least;
        expect(!below, "a token below the last of top_k is never drawn");
        const auto kept = std::count_if(logits.begin(), logits.end(),
                                        [&](float logit) { return logit >= least; });
        expect(temperature < 1e30f || r == 2 ||
                   std::fabs(draws.log_q[24 * r] + std::log(float(kept))) < 1e-5f,
               "a hot law over top_k and its ties is even");
      }
    }
  }
  const float row[] = {0, -0.0f, -1, -kInf};
  Matrix zeros(DType::kFloat32, 1, 4, 0, 0);
  for (int64_t v = 0; v < 4; ++v) zeros.set(0, v, row[v]);
  for (const Options& o :
       {Options{.num_candidates = 64, .top_k = 1}, Options{.num_candidates = 64, .min_p = 1},
        Options{.num_candidates = 64, .top_p = 0.2}}) {
    const Draws draws = sample(Cuda{}, zeros, o);
    expect(std::count(draws.tokens.begin(), draws.tokens.end(), 0) > 8 &&
               std::count(draws.tokens.begin(), draws.tokens.end(), 1) > 8 &&
               close(draws.log_q[0], -std::log(2.0f)),
           "both zeros are one logit");
  }
  zeros.set(0, 0, 0);
  zeros.set(0, 1, -1);
  for (const double gap : {0.99999999, 1.00000001}) {  // between two floats
    const Draws draws = sample(Cuda{}, zeros, {.num_candidates = 64, .min_p = std::exp(-gap)});
    const auto found = std::count(draws.tokens.begin(), draws.tokens.end(), 1);
    expect(gap < 1 ? found == 0 : found > 8, "min_p cuts between two floats");
  }
  expect_no_faults("cuts");
}

// Against float64, where the law is uniform, one token alone, or nearly so.
void statistics() {
  for (const int64_t vocab : {2, 129, 4100, 50258}) {
    Matrix m(DType::kFloat32, 6, vocab, 1, 1);
    for (int64_t v = 0; v < vocab; ++v) {
      m.set(0, v, 0);
      m.set(1, v, v == vocab / 3 ? 24.0f : 0.0f);
      m.set(2, v, v == vocab - 1 ? -5 : -kInf);
      // One lane of the warp that adds the chunks has both.
      m.set(3, v, v == 0 || v == (vocab > 33000 ? 32768 : vocab - 1) ? 3 : -kInf);
      m.set(4, v, float(v) * 30 / float(vocab));
      m.set(5, v, v % 5 ? 1e4f + float(v % 11) : -kInf);
    }
    for (const float temperature : {0.35f, 1.0f, 5.0f}) {
      const Draws draws =
          sample(Cuda{}, m, {.num_candidates = 1, .temperature = temperature, .statistics = true});
      for (int64_t r = 0; r < m.rows; ++r) {
        std::vector<double> x;
        for (int64_t v = 0; v < vocab; ++v) x.push_back(double(m.get(r, v)) / temperature);
        std::sort(x.begin(), x.end(), std::greater<>());
        double sum = 0, moment = 0;
        for (const double value : x) {
          sum += std::exp(value - x[0]);
          if (value > -kInf) moment += (value - x[0]) * std::exp(value - x[0]);
        }
        const float* const got = draws.statistics.data() + 3 * r;
        expect(std::fabs(got[0] - (std::log(sum) - moment / sum)) < 3e-6 && got[0] >= 0,
               "entropy of law " + std::to_string(r) + " of " + std::to_string(vocab) + ": " +
                   std::to_string(got[0]));
        expect(std::fabs(got[1] + std::log(sum)) < 3e-6, "the most likely token of a law");
        expect(x[1] == -kInf ? got[2] == -kInf : close(got[2], float(x[1] - x[0] - std::log(sum))),
               "the second most likely token of a law");
      }
    }
  }
  expect_no_faults("statistics");
}

// The row's sums, a digit or two of the logits, the sums of the nucleus: four reads, and more where
// logits that differ by little lie about the boundary.
void reads_of_a_nucleus() {
  for (const DType dtype : kDTypes) {
    for (const bool near : {false, true}) {
      const int64_t vocab = 5 * 1024;
      Matrix m(dtype, 1, vocab, 0, 0);
      m.fill(near ? 1e-3f : 3, 23);
      const int64_t loads = vocab * edlm::size_of(dtype) / 16;
      simt::wide_loads() = 0;
      const Draws draws = sample(Cuda{}, m, {.num_candidates = 1, .top_p = 0.7f});
      expect(simt::wide_loads() > loads && simt::wide_loads() <= (near ? 6 : 4) * loads,
             "reads of a nucleus: " + std::to_string(simt::wide_loads() / loads));
      // Rounding orders weights that are nearly alike, so only the nucleus's size is sure.
      std::vector<double> weights;
      for (int64_t v = 0; v < vocab; ++v) weights.push_back(std::exp(double(m.get(0, v))));
      std::sort(weights.begin(), weights.end(), std::greater<>());
      const double wanted = 0.7f * std::accumulate(weights.begin(), weights.end(), 0.0);
      double sum = 0;
      double last = 0;
      for (const double weight : weights) {
        if (sum >= wanted && weight < last) break;
        sum += last = weight;
      }
      const double log_q = double(m.get(0, draws.tokens[0])) - std::log(sum);
      expect(std::fabs(draws.log_q[0] - log_q) < (near ? 1e-3 : 2e-6),
             "size of a nucleus: " + name_of(m) + std::to_string(draws.log_q[0]) + " and " +
                 std::to_string(log_q));
    }
  }
  expect_no_faults("reads of a nucleus");
}

void bad_rows() {
  for (const int64_t vocab : {40, 5000}) {
    for (const Options& o :
         {Options{2}, Options{.num_candidates = 2, .top_p = 0.5, .statistics = true},
          Options{.num_candidates = 2, .statistics = true},
          Options{.num_candidates = 2, .top_k = 9, .min_p = 0.1}}) {
      Matrix m(DType::kBFloat16, 6, vocab, 0, 0);
      m.fill(1, 8);
      m.set(1, vocab - 1, kNaN);
      m.set(2, 0, kInf);
      for (int64_t v = 0; v < vocab; ++v) m.set(3, v, -kInf);
      for (int64_t v = 0; v < vocab; ++v) m.set(4, v, kNaN);
      const Draws draws = sample(Cuda{}, m, o);
      expect(bool(draws.status), "a bad row is no error on the device");
      for (int64_t i = 0; i < 12; ++i) {
        const bool bad = i / 2 >= 1 && i / 2 <= 4;
        expect(bad ? draws.tokens[i] == -1 && std::isnan(draws.log_q[i])
                   : draws.tokens[i] >= 0 && draws.log_q[i] <= 0,
               "bad rows give token -1 and NaN, others are unharmed");
      }
      for (int64_t i = 0; o.statistics && i < 18; ++i) {
        expect(std::isnan(draws.statistics[i]) == (i / 3 >= 1 && i / 3 <= 4),
               "bad rows have no statistics, others are unharmed");
      }
      const std::vector<float> scores = score(Cuda{}, m, {}, {0, 0, 0, 0, 0, vocab});
      for (int64_t r = 0; r < 6; ++r) {
        expect(std::isnan(scores[r]) == (r > 0), "bad rows and targets score NaN");
      }
      expect(std::isnan(score(Cuda{}, m, {}, {-1, 0, 0, 0, 0, 0})[0]), "a negative target");
      expect_no_faults("bad rows");
    }
  }
}

void no_rows() {
  Matrix m(DType::kFloat32, 0, 5000, 0, 0);
  agree(m, {});
}

// Whole waves of blocks and a few rows more, fewer than a wave, and so many bytes that a wave need
// not be full.
void when_rows_are_cut() {
  const auto cut = [](DType dtype, int64_t rows, int64_t vocab) {
    return edlm::cuda::row_plan(dtype, rows, vocab, 0).split;
  };
  simt::multiprocessors() = 132;
  expect(cut(DType::kBFloat16, 64, 50258) && cut(DType::kFloat32, 64, 50258), "few rows");
  expect(!cut(DType::kBFloat16, 312, 50258), "one wave that is long enough");
  expect(cut(DType::kFloat32, 312, 50258), "a wave and a few rows");
  expect(!cut(DType::kBFloat16, 1024, 50258) && !cut(DType::kFloat32, 1024, 50258), "many rows");
  expect(!cut(DType::kBFloat16, 4 * 528 + 1, 50258), "many waves");
  expect(!cut(DType::kBFloat16, 1, 4096) && cut(DType::kBFloat16, 1, 4097), "short rows");
  expect(cut(DType::kBFloat16, 1024, 400'001), "more than shared memory holds");
  simt::multiprocessors() = 1;
}

void few_rows_as_many() {
  Matrix m(DType::kBFloat16, 14, 4200, 1, 1);
  m.fill(3, 31);
  const Options o = {.num_candidates = 2};
  agree(m, o, "a block per row");
  const Draws many = sample(Cuda{}, m, o), few = sample(Cuda{}, m, o, 7, 5);
  for (int64_t i = 0; i < 10; ++i) {
    expect(few.tokens[i] == many.tokens[14 + i] && few.log_q[i] == many.log_q[14 + i],
           "few rows and many agree to the bit");
  }
  expect_no_faults("few rows as many");
}

// More cells than shared memory holds.
void huge_vocabulary() {
  Matrix m(DType::kBFloat16, 1, 400'001, 0, 0);
  m.fill(3, 41);
  agree(m, {.num_candidates = 4}, "more cells than shared memory holds");
}

void last_token() {
  for (const DType dtype : kDTypes) {
    for (const int64_t vocab : {2, 128, 1024, 1025, 4096, 5000}) {
      Matrix m(dtype, 2, vocab, 0, 0);
      m.fill(0, 0);
      for (int64_t r = 0; r < 2; ++r) m.set(r, vocab - 1, 40);
      const Draws draws = sample(Cuda{}, m, {.num_candidates = 1});
      expect(draws.tokens[0] == vocab - 1 && draws.tokens[1] == vocab - 1,
             "last token: the last cell ends one too early");
    }
  }
  expect_no_faults("last token");
}

// Draws from weights; `row_stride` for rows that are one and the same, 0.
template <class Backend>
Draws sample_weights(Backend backend, const Matrix& m, int64_t rows, int64_t row_stride,
                     int64_t k) {
  const std::vector<int64_t> keys =
      row_stride ? keys_for(rows) : std::vector<int64_t>(rows, keys_for(1)[0]);
  Draws draws = {std::vector<int64_t>(rows * k, -7), std::vector<float>(rows * k, 7), {}, {}};
  draws.status = run(backend, edlm::SampleWeightsArgs{.weights = m.logits,
                                                      .dtype = m.dtype,
                                                      .rows = rows,
                                                      .vocab = m.vocab,
                                                      .row_stride = row_stride,
                                                      .keys = keys.data(),
                                                      .num_candidates = k,
                                                      .tokens = draws.tokens.data(),
                                                      .log_q = draws.log_q.data()});
  return draws;
}

// Weights of many magnitudes, some of them 0.
void fill_weights(Matrix& m, float scale = 1) {
  m.fill(3, unsigned(m.vocab));
  for (int64_t r = 0; r < m.rows; ++r) {
    for (int64_t v = 0; v < m.vocab; ++v) {
      m.set(r, v, v % 7 == 3 ? 0.0f : std::exp(m.get(r, v) - 2) * scale);
    }
  }
}

void agree_on_weights(const Matrix& m, int64_t k) {
  const std::string what = name_of(m, "weights");
  const Draws cpu = sample_weights(Cpu{}, m, m.rows, m.row_stride, k);
  const Draws cuda = sample_weights(Cuda{}, m, m.rows, m.row_stride, k);
  expect(bool(cpu.status) && bool(cuda.status), "status of sample_weights, " + what);
  int different = 0;
  for (size_t i = 0; i < cpu.tokens.size(); ++i) {
    const int64_t token = cuda.tokens[i];
    expect(token >= 0 && token < m.vocab && cuda.log_q[i] <= 0, "token and log_q, " + what);
    if (token < 0 || token >= m.vocab) continue;
    expect(m.get(int64_t(i) / k, token) > 0, "a weight of 0 is never drawn, " + what);
    different += cpu.tokens[i] != token;
    if (cpu.tokens[i] == token) expect(close(cuda.log_q[i], cpu.log_q[i]), "log_q, " + what);
  }
  expect(different <= 1, "tokens, " + what);
  if (m.rows && m.vocab > edlm::cuda::kShortRow && m.vocab < 100'000) {
    const int64_t rows = edlm::cuda::kManyWaves * edlm::cuda::kBlocks<edlm::BFloat16>;
    const Draws many = sample_weights(Cuda{}, m, rows, 0, k);
    for (int64_t i = 0; i < rows * k; ++i) {
      expect(many.tokens[i] == cuda.tokens[i % k] && many.log_q[i] == cuda.log_q[i % k],
             "few rows and many agree to the bit, " + what);
    }
  }
  expect_no_faults(what);
}

void weights() {
  for (const DType dtype : kDTypes) {
    for (const int64_t vocab : {1, 7, 28, 1024, 4096, 4097, 5003}) {
      Matrix m(dtype, 3, vocab, 3, 1);
      fill_weights(m);
      agree_on_weights(m, 70);
    }
    for (int64_t offset = 0; offset < 16 / edlm::size_of(dtype); ++offset) {
      Matrix m(dtype, 1, 3 * 1024 + 40, 0, offset);
      fill_weights(m);
      agree_on_weights(m, 9);
    }
    Matrix last(dtype, 2, 5000, 0, 0);
    last.fill(0, 0);
    for (int64_t r = 0; r < 2; ++r) last.set(r, 4999, 1);
    expect(sample_weights(Cuda{}, last, 2, 5000, 1).tokens == std::vector<int64_t>{4999, 4999},
           "the last weight");
  }
  for (const float scale : {0x1p-140f, 0x1p110f}) {
    Matrix m(DType::kFloat32, 3, 4500, 1, 1);
    fill_weights(m, scale);
    agree_on_weights(m, 9);
  }
  Matrix huge(DType::kBFloat16, 1, 400'001, 0, 0);
  fill_weights(huge);
  agree_on_weights(huge, 4);
  agree_on_weights(Matrix(DType::kFloat32, 0, 5000, 0, 0), 2);
}

void bad_weights() {
  for (const int64_t vocab : {40, 5000}) {
    for (const int64_t at : {int64_t{0}, vocab - 1}) {
      const float bad[] = {1, kNaN, kInf, -kInf, -1e-30f, 3e38f, 0, -0.0f};
      Matrix m(DType::kFloat32, 8, vocab, 0, 0);
      m.fill(0, 0);
      for (int64_t r = 0; r < 8; ++r) {
        m.set(r, vocab / 2, r == 6 ? 0 : r == 5 ? 3e38f : 1);
        m.set(r, at, bad[r]);
      }
      const Draws draws = sample_weights(Cuda{}, m, 8, vocab, 2);
      for (int64_t i = 0; i < 16; ++i) {
        const bool good = i / 2 == 0 || i / 2 == 7;
        expect(
            good ? draws.tokens[i] >= 0 && draws.log_q[i] <= 0
                 : draws.tokens[i] == -1 && std::isnan(draws.log_q[i]),
            "bad weights give token -1 and NaN, others are unharmed: row " + std::to_string(i / 2));
      }
      expect_no_faults("bad weights");
    }
  }
}

// Three rows more than 2^31 elements apart, in memory that exists only where it is touched.
void rows_far_apart() {
  const int64_t vocab = 5000, row_stride = (int64_t{1} << 31) + 5;
  const size_t bytes = (2 * row_stride + vocab) * 2;
  void* const memory = mmap(nullptr, bytes, PROT_READ | PROT_WRITE,
                            MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  expect(memory != MAP_FAILED, "mmap");
  if (memory == MAP_FAILED) return;
  uint16_t* const logits = static_cast<uint16_t*>(memory);
  for (int64_t r = 0; r < 3; ++r) logits[r * row_stride + 1000 * r + 7] = bfloat16(40);
  const std::vector<int64_t> keys = keys_for(3);
  int64_t tokens[3];
  float log_q[3], log_probs[3];
  expect(bool(run(Cuda{}, edlm::SampleCandidatesArgs{logits, DType::kBFloat16, 3, vocab, row_stride,
                                                     keys.data(), 1, -1, 1, 0, 1, 0, tokens, log_q,
                                                     nullptr})),
         "status");
  const int64_t targets[] = {7, 1007, 2007};
  expect(bool(run(Cuda{}, edlm::TokenLogProbsArgs{logits, DType::kBFloat16, 3, vocab, row_stride,
                                                  targets, -1, 1, log_probs})),
         "status");
  for (int64_t r = 0; r < 3; ++r) {
    expect(tokens[r] == 1000 * r + 7 && log_probs[r] > -1e-6f,
           "rows far apart: a row's index is cut to 32 bits");
  }
  munmap(memory, bytes);
  expect_no_faults("rows far apart");
}

void resample() {
  for (const int64_t candidates : {1, 2, 8, 17, 33, 100}) {
    const int64_t batch = 9;
    std::mt19937 engine{unsigned(candidates)};
    std::normal_distribution<float> normal(-700, 3);
    std::vector<float> log_weights(batch * candidates);
    for (float& w : log_weights) w = normal(engine);
    for (int64_t b = 0; b < batch; b += 2) log_weights[b * candidates + candidates / 2] -= kInf;
    if (candidates == 1) log_weights.assign(batch, -3);
    const std::vector<int64_t> keys = keys_for(batch);
    std::vector<int64_t> choice[2];
    std::vector<float> ess[2], log_mean[2];
    for (int i = 0; i < 2; ++i) {
      choice[i].assign(batch, -7);
      ess[i].assign(batch, 0);
      log_mean[i].assign(batch, 0);
      const edlm::ResampleArgs args = {
          log_weights.data(), batch,         candidates,        keys.data(),
          choice[i].data(),   ess[i].data(), log_mean[i].data()};
      const Status status =
          i ? edlm::cuda::resample(args, nullptr) : edlm::cpu::resample(args, 0, batch);
      expect(bool(status), "status of resample");
    }
    for (int64_t b = 0; b < batch; ++b) {
      expect(choice[0][b] == choice[1][b] && close(ess[0][b], ess[1][b]) &&
                 close(log_mean[0][b], log_mean[1][b]),
             "resample of " + std::to_string(candidates) + " candidates");
    }
  }
  const float bad[] = {0, kNaN, kInf, 0, -kInf, -kInf, 0, 0};
  const std::vector<int64_t> keys = keys_for(4);
  int64_t choice[4];
  float ess[4], log_mean[4];
  const edlm::ResampleArgs args = {bad, 4, 2, keys.data(), choice, ess, log_mean};
  expect(bool(edlm::cuda::resample(args, nullptr)), "status of resample");
  for (int64_t b = 0; b < 3; ++b) {
    expect(choice[b] == -1 && std::isnan(ess[b]) && std::isnan(log_mean[b]), "bad weights");
  }
  expect(choice[3] >= 0 && close(ess[3], 2), "good weights beside bad ones");
  expect_no_faults("resample");
}

struct Redraws {
  std::vector<int64_t> tokens;
  std::vector<uint8_t> accepted;
  std::vector<float> log_p;
};

// Of both backends.
std::pair<Redraws, Redraws> redraw(const Matrix& p, const Matrix& q, std::vector<int64_t> draft,
                                   const Options& of_p = {}, const Options& of_q = {}) {
  const auto rows_of = [](const Matrix& m, const Options& o) {
    return edlm::LogitRows{m.logits,     m.dtype,        m.rows,       m.vocab,
                           m.row_stride, o.forbidden_id, o.temperature};
  };
  const std::vector<int64_t> keys = keys_for(p.rows);
  const auto on = [&](bool cuda) {
    Redraws to = {std::vector<int64_t>(p.rows, -7), std::vector<uint8_t>(p.rows, 7),
                  std::vector<float>(p.rows, 7)};
    const edlm::ResidualDrawArgs args = {rows_of(p, of_p), rows_of(q, of_q), draft.data(),
                                         keys.data(),      to.tokens.data(), to.accepted.data(),
                                         to.log_p.data()};
    std::vector<double> workspace(edlm::cuda::residual_draw_workspace(args) / 8, NAN);
    const Status status = cuda ? edlm::cuda::residual_draw(args, workspace.data(), nullptr)
                               : edlm::cpu::residual_draw(args, 0, p.rows);
    expect(cuda ? bool(status) : true, "status of residual_draw");
    return to;
  };
  return {on(false), on(true)};
}

void agree_in_redraws(const Matrix& p, const Matrix& q, const std::vector<int64_t>& draft,
                      const Options& of_p = {}, const Options& of_q = {},
                      const std::string& more = "") {
  const auto [cpu, cuda] = redraw(p, q, draft, of_p, of_q);
  const std::string what = "residual_draw of " + name_of(p) + "and " + name_of(q, more);
  int different = 0;
  for (int64_t r = 0; r < p.rows; ++r) {
    different += cpu.tokens[r] != cuda.tokens[r] || cpu.accepted[r] != cuda.accepted[r];
    expect(cuda.tokens[r] >= 0 && cuda.tokens[r] < p.vocab && cuda.accepted[r] <= 1,
           "in range, " + what);
    if (cpu.tokens[r] == cuda.tokens[r]) expect(close(cuda.log_p[r], cpu.log_p[r]), what);
  }
  expect(different <= 1, "tokens, " + what);
  expect_no_faults(what);
}

// Short rows, rows that are cut at their chunks and rows that have a block, of one size and of two;
// drafts that are taken, redrawn from tries, and redrawn from the summed residual.
void residual_draw() {
  const auto drafts = [](int64_t rows, int64_t vocab) {
    std::vector<int64_t> draft(rows);
    for (int64_t r = 0; r < rows; ++r) draft[r] = (r * 7919 + vocab - 1) % vocab;
    return draft;
  };
  for (const DType dtype : kDTypes) {
    for (const int64_t vocab : {7, 33, 1024, 4100}) {
      for (const int64_t more : {0, 70}) {
        const int64_t rows = vocab > 4000 ? 2 : 9;
        Matrix p(dtype, rows, vocab, 1, 1), q(dtype, rows, vocab + more, 3, 0);
        p.fill(2, 3);
        q.fill(2, 4);
        p.set(1, vocab / 2, kNaN);
        q.set(1, 0, kInf);
        const Options of_p = {.forbidden_id = vocab / 2, .temperature = 0.8f};
        const Options of_q = {.forbidden_id = 0, .temperature = 1.4f};
        agree_in_redraws(p, q, drafts(rows, q.vocab), of_p, of_q);
        if (more) agree_in_redraws(q, p, drafts(rows, vocab), of_q, of_p);
      }
    }
    // Neither cut nor short: as many rows as fill two waves of the one multiprocessor.
    Matrix p(dtype, 9, 4200, 0, 1), q(dtype, 9, 4200, 1, 0);
    p.fill(2, 5);
    q.fill(2, 6);
    agree_in_redraws(p, q, drafts(9, 4200), {}, {}, "a block to a row");
  }
  Matrix one(DType::kFloat32, 2, 1, 0, 0);
  one.fill(1, 1);
  agree_in_redraws(one, one, {0, 0});
  Matrix none(DType::kFloat32, 0, 5, 0, 0);
  agree_in_redraws(none, none, {});

  // p has not the draft, and q differs from it by little more than that.
  for (const int64_t vocab : {70, 3000, 4100}) {
    const int64_t rows = 8;
    Matrix p(DType::kFloat32, rows, vocab, 0, 0), q(DType::kFloat32, rows, vocab, 0, 0);
    p.fill(1, 9);
    for (int64_t r = 0; r < rows; ++r) {
      for (int64_t v = 0; v < vocab; ++v) q.set(r, v, p.get(r, v));
      q.set(r, 17, std::log(float(vocab)) - 4);
      p.set(r, 17, -kInf);
    }
    const std::vector<int64_t> draft(rows, 17);
    agree_in_redraws(p, q, draft, {}, {}, "a small residual");
    agree_in_redraws(p, p, draft, {}, {}, "no residual");
    const auto [cpu, cuda] = redraw(p, p, draft);
    for (int64_t r = 0; r < rows; ++r) {
      expect(!cuda.accepted[r] && cuda.tokens[r] != 17, "a draft of p = 0 is never taken");
    }
  }
}

void bad_residual_rows() {
  for (const int64_t vocab : {40, 5000}) {
    Matrix p(DType::kBFloat16, 8, vocab, 0, 0), q(DType::kBFloat16, 8, vocab, 0, 0);
    p.fill(1, 8);
    q.fill(1, 9);
    p.set(1, vocab - 1, kNaN);
    q.set(2, 0, kInf);
    for (int64_t v = 0; v < vocab; ++v) p.set(3, v, -kInf);
    for (int64_t v = 0; v < vocab; ++v) q.set(4, v, -kInf);
    const Redraws draws = redraw(p, q, {0, 0, 0, 0, 0, -1, vocab, 0}).second;
    for (int64_t r = 0; r < 8; ++r) {
      const bool bad = r >= 1 && r <= 6;
      expect(bad ? draws.tokens[r] == -1 && !draws.accepted[r] && std::isnan(draws.log_p[r])
                 : draws.tokens[r] >= 0 && draws.log_p[r] <= 0,
             "bad rows and drafts give token -1 and NaN, others are unharmed");
    }
    expect_no_faults("bad rows of a residual");
  }
}

void keys_and_steps() {
  const std::vector<int64_t> seeds = keys_for(300);
  std::vector<int64_t> coordinates(900);
  for (int64_t i = 0; i < 900; ++i) coordinates[i] = (i * i) << (i % 40);
  for (const int64_t dims : {0, 1, 3}) {
    std::vector<int64_t> cpu(300), cuda(300);
    expect(bool(edlm::cpu::stream_keys({seeds.data(), coordinates.data(), 300, dims, cpu.data()}, 0,
                                       300)),
           "status");
    expect(bool(edlm::cuda::stream_keys({seeds.data(), coordinates.data(), 300, dims, cuda.data()},
                                        nullptr)),
           "status");
    expect(cpu == cuda, "stream_keys");
  }
  const double mask_probs[] = {1, 0.7, 0.7, 0.3, 0.01};
  for (const int64_t length : {0, 1, 57}) {
    std::vector<int64_t> cpu(5 * length), cuda(5 * length);
    expect(
        bool(edlm::cpu::reveal_steps({seeds.data(), 5, length, 4, mask_probs, cpu.data()}, 0, 5)),
        "status");
    expect(bool(edlm::cuda::reveal_steps({seeds.data(), 5, length, 4, mask_probs, cuda.data()},
                                         nullptr)),
           "status");
    expect(cpu == cuda, "reveal_steps");
  }
  expect_no_faults("keys and steps");
}

// The first fault that 64 threads of this kernel commit; empty for none.
std::string fault_of(const std::function<void()>& kernel) {
  simt::run(1, 64, 64 * sizeof(double), kernel);
  const std::string fault = simt::faults().empty() ? "" : simt::faults().front();
  simt::faults().clear();
  return fault;
}

void the_machine_sees_faults() {
  using namespace edlm::cuda;
  const auto neighbour_after = [](void (*sync)()) {
    return fault_of([sync] {
      dynamic_shared()[thread_index()] = thread_index();
      sync();
      const double other = dynamic_shared()[(thread_index() + 1) % 64];
      sync_block();
      dynamic_shared()[thread_index()] = other;
    });
  };
  const auto nothing = [] {};
  const auto has = [](const std::string& fault, const char* what) {
    return fault.find(what) != std::string::npos;
  };
  expect(neighbour_after(sync_block).empty(), "a barrier orders a block");
  expect(has(neighbour_after(sync_warp), "race"), "a warp's barrier orders no block");
  expect(has(neighbour_after(nothing), "uninitialised"), "a read before the write");
  const auto reads_early = [](bool waits) {
    simt::start_early() = true;
    const std::string fault = fault_of([waits] {
      static double written = 1;
      if (waits) wait_for_previous_kernel();
      double read = SharedPtr<double>(&written)[0];
      (void)read;
    });
    simt::start_early() = false;
    return fault;
  };
  expect(has(reads_early(false), "before the previous kernel"), "a read before the wait");
  expect(reads_early(true).empty(), "a read after the wait");
  expect(has(fault_of([] { dynamic_shared()[0] = 1.0; }), "race"), "two writes race");
  expect(has(fault_of([] {
               if (lane() < 16) ballot(true);
             }),
             "never come"),
         "a ballot of half a warp");
  expect(has(fault_of([] {
               if (thread_index() < 32) sync_block();
             }),
             "never come"),
         "a barrier that half of a block passes by");
  expect(has(fault_of([] { lane() < 16 ? shuffle_xor(1, 1) : shuffle_up(1, 1); }), "others of"),
         "a warp at two operations at once");
}

struct Case {
  const char* name;
  void (*run)();
};

constexpr Case kCases[] = {
    {"the_machine_sees_faults", the_machine_sees_faults},
    {"shapes_and_dtypes", shapes_and_dtypes},
    {"unaligned_rows", unaligned_rows},
    {"numbers_of_candidates", numbers_of_candidates},
    {"forbidden_tokens_and_temperatures", forbidden_tokens_and_temperatures},
    {"extreme_scales", extreme_scales},
    {"peaks_and_holes", peaks_and_holes},
    {"nucleus", nucleus},
    {"reads_of_a_nucleus", reads_of_a_nucleus},
    {"cuts", cuts},
    {"statistics", statistics},
    {"bad_rows", bad_rows},
    {"no_rows", no_rows},
    {"when_rows_are_cut", when_rows_are_cut},
    {"few_rows_as_many", few_rows_as_many},
    {"huge_vocabulary", huge_vocabulary},
    {"last_token", last_token},
    {"rows_far_apart", rows_far_apart},
    {"weights", weights},
    {"bad_weights", bad_weights},
    {"resample", resample},
    {"residual_draw", residual_draw},
    {"bad_residual_rows", bad_residual_rows},
    {"keys_and_steps", keys_and_steps},
};

}  // namespace

int main(int argc, char** argv) {
  int ran = 0;
  for (const Case& c : kCases) {
    if (argc > 1 && std::strcmp(argv[1], c.name)) continue;
    const int before = failures;
    c.run();
    ++ran;
    std::printf("%s %s\n", failures == before ? "passed" : "FAILED", c.name);
  }
  expect(ran > 0, "there is a case of that name");
  return failures != 0;
}
