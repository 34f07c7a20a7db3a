// The core without torch or Python: known answers, and an embedder's use of the ops.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <limits>
#include <memory>
#include <vector>

#include "../cpu/row_pass.h"
#include "edlm/philox.h"
#include "edlm/resample.h"
#include "edlm/residual_draw.h"
#include "edlm/reveal_steps.h"
#include "edlm/sample_candidates.h"
#include "edlm/sample_weights.h"
#include "edlm/stream_keys.h"
#include "edlm/token_log_probs.h"

namespace {

int failures = 0;

void expect(bool holds, const char* what) {
  if (holds) return;
  std::printf("FAILED: %s\n", what);
  ++failures;
}

// Random123's published vectors.
void philox_known_answers() {
  const edlm::Words zeros = edlm::philox(0, {{0, 0, 0, 0}});
  expect(zeros.w[0] == 0x6627e8d5u && zeros.w[1] == 0xe169c58du && zeros.w[2] == 0xbc57ac4cu &&
             zeros.w[3] == 0x9b00dbd8u,
         "philox of zeros");
  const edlm::Words ones = edlm::philox(~0ull, {{~0u, ~0u, ~0u, ~0u}});
  expect(ones.w[0] == 0x408f276du && ones.w[1] == 0x41c83b0eu && ones.w[2] == 0xa20bc7c6u &&
             ones.w[3] == 0x6d5451fdu,
         "philox of ones");
}

void uniform_is_open() {
  expect(edlm::uniform(0) > 0 && edlm::uniform(~0ull) < 1, "uniform in (0, 1)");
}

// Many-tail row, V not a multiple of anything: frequencies against the exact probabilities.
void draws_follow_probabilities() {
  const int64_t vocab = 5003, draws = 200000;
  std::vector<float> logits(vocab, -5.0f);
  logits[17] = 3.0f;
  logits[vocab - 1] = 2.0f;
  logits[40] = 50.0f;  // forbidden
  const int64_t key = 7;
  std::vector<int64_t> tokens(draws);
  std::vector<float> log_q(draws);
  const edlm::SampleCandidatesArgs args = {.logits = logits.data(),
                                           .dtype = edlm::DType::kFloat32,
                                           .rows = 1,
                                           .vocab = vocab,
                                           .row_stride = vocab,
                                           .keys = &key,
                                           .num_candidates = draws,
                                           .forbidden_id = 40,
                                           .temperature = 1.0f,
                                           .top_p = 1.0f,
                                           .tokens = tokens.data(),
                                           .log_q = log_q.data()};
  expect(bool(edlm::cpu::sample_candidates(args, 0, 1)), "sample_candidates status");
  const double tail = 5000 * std::exp(-5.0);
  const double total = std::exp(3.0) + std::exp(2.0) + tail;
  int64_t head = 0, last = 0, forbidden = 0;
  for (const int64_t token : tokens) {
    head += token == 17;
    last += token == vocab - 1;
    forbidden += token == 40;
  }
  const auto near = [&](int64_t hits, double p) {
    return std::abs(double(hits) - p * draws) < 5 * std::sqrt(p * (1 - p) * draws);
  };
  expect(near(head, std::exp(3.0) / total), "frequency of the head");
  expect(near(last, std::exp(2.0) / total), "frequency of the last token");
  expect(forbidden == 0, "the forbidden token is never drawn");

  std::vector<float> log_probs(1);
  const edlm::TokenLogProbsArgs score = {.logits = logits.data(),
                                         .dtype = edlm::DType::kFloat32,
                                         .rows = 1,
                                         .vocab = vocab,
                                         .row_stride = vocab,
                                         .targets = tokens.data(),
                                         .forbidden_id = 40,
                                         .temperature = 1.0f,
                                         .log_probs = log_probs.data()};
  expect(bool(edlm::cpu::token_log_probs(score, 0, 1)), "token_log_probs status");
  expect(std::abs(log_probs[0] - log_q[0]) < 1e-6f, "score and draw agree on log p");
  expect(std::abs(log_probs[0] - (logits[tokens[0]] - std::log(total))) < 1e-5, "log p is exact");
}

uint16_t half(edlm::DType dtype, float value) {
  const uint32_t bits = edlm::to_bits(value);
  if (dtype == edlm::DType::kBFloat16) return uint16_t(bits >> 16);
  // Of fp16's normal range, or 0.
  return uint16_t((bits >> 16 & 0x8000) | (value == 0 ? 0 : (bits >> 13 & 0x3ffff) - (112 << 10)));
}

struct Cuts {
  int64_t top_k = 0;
  double top_p = 1, min_p = 0;
};

// Every dtype, sizes around the edges of groups, cells and chunks, rows apart and unaligned, in
// memory without a byte to spare: for AddressSanitizer, which sees a stray read or write.
void every_shape() {
  constexpr int64_t kRows = 3, kDraws = 4;
  for (const auto dtype : {edlm::DType::kFloat32, edlm::DType::kBFloat16, edlm::DType::kFloat16}) {
    for (const int64_t vocab : {1, 3, 15, 16, 17, 127, 128, 129, 2047, 2048, 2049, 4500, 20011}) {
      for (const int64_t gap : {0, 1}) {
        for (const Cuts& cuts : {Cuts{}, Cuts{0, 0.7, 0}, Cuts{0, 1e-12, 0}, Cuts{5, 1, 0},
                                 Cuts{0, 1, 0.3}, Cuts{400, 0.9, 0.05}}) {
          const int64_t stride = vocab + gap, size = edlm::size_of(dtype);
          const int64_t elements = (kRows - 1) * stride + vocab + gap;
          const auto memory = std::make_unique<char[]>(elements * size);
          for (int64_t i = 0; i < elements; ++i) {
            const float value = float(i * 7919 % 64) / 16 - 2;
            const uint16_t word = half(dtype, value);
            std::memcpy(memory.get() + i * size, size == 4 ? (const void*)&value : &word, size);
          }
          const auto keys = std::make_unique<int64_t[]>(kRows);
          const auto tokens = std::make_unique<int64_t[]>(kRows * kDraws);
          const auto log_q = std::make_unique<float[]>(kRows * kDraws);
          const auto targets = std::make_unique<int64_t[]>(kRows);
          const auto log_probs = std::make_unique<float[]>(kRows);
          const auto statistics = std::make_unique<float[]>(3 * kRows);
          for (int64_t r = 0; r < kRows; ++r) keys[r] = 99 * r;
          const int64_t forbidden = vocab > 2 ? vocab - 2 : -1;
          const edlm::SampleCandidatesArgs args = {.logits = memory.get() + gap * size,
                                                   .dtype = dtype,
                                                   .rows = kRows,
                                                   .vocab = vocab,
                                                   .row_stride = stride,
                                                   .keys = keys.get(),
                                                   .num_candidates = kDraws,
                                                   .forbidden_id = forbidden,
                                                   .temperature = 0.8f,
                                                   .top_k = cuts.top_k,
                                                   .top_p = cuts.top_p,
                                                   .min_p = cuts.min_p,
                                                   .tokens = tokens.get(),
                                                   .log_q = log_q.get(),
                                                   .statistics = statistics.get()};
          expect(bool(edlm::cpu::sample_candidates(args, 0, kRows)), "status of every shape");
          for (int64_t i = 0; i < kRows * kDraws; ++i) {
            expect(tokens[i] >= 0 && tokens[i] < vocab && tokens[i] != forbidden && log_q[i] <= 0,
                   "draws of every shape");
          }
          for (int64_t r = 0; r < kRows; ++r) targets[r] = tokens[r * kDraws];
          const edlm::TokenLogProbsArgs score = {.logits = args.logits,
                                                 .dtype = dtype,
                                                 .rows = kRows,
                                                 .vocab = vocab,
                                                 .row_stride = stride,
                                                 .targets = targets.get(),
                                                 .forbidden_id = forbidden,
                                                 .temperature = 0.8f,
                                                 .log_probs = log_probs.get()};
          expect(bool(edlm::cpu::token_log_probs(score, 0, kRows)), "status of every shape");
          for (int64_t r = 0; r < kRows; ++r) {
            const float gain = log_q[r * kDraws] - log_probs[r];
            const float* const law = statistics.get() + 3 * r;
            expect(law[0] >= 0 && law[0] <= std::log(float(vocab)) + 1e-5f && law[1] <= 0 &&
                       law[2] <= law[1] && log_q[r * kDraws] <= law[1],
                   "statistics of every shape");
            expect(args.cut() ? gain > -1e-5f : std::abs(gain) < 1e-5f, "scores of every shape");
          }
          // p against a q of fewer tokens, hotter, so that drafts are taken, tried and summed for.
          const int64_t vocab_q = vocab > 2 ? vocab - 1 : vocab;
          const edlm::LogitRows p = {args.logits, dtype, kRows, vocab, stride, forbidden, 0.8f};
          const edlm::LogitRows q = {args.logits, dtype, kRows, vocab_q, stride, -1, 0.81f};
          const auto accepted = std::make_unique<uint8_t[]>(kRows);
          for (const int64_t shift : {int64_t{0}, vocab_q / 2}) {
            for (int64_t r = 0; r < kRows; ++r) targets[r] = (vocab_q - 1 + shift * r) % vocab_q;
            const edlm::ResidualDrawArgs redraw = {
                p, q, targets.get(), keys.get(), tokens.get(), accepted.get(), log_probs.get()};
            expect(bool(edlm::cpu::residual_draw(redraw, 0, kRows)), "status of every shape");
            for (int64_t r = 0; r < kRows; ++r) {
              expect(tokens[r] >= 0 && tokens[r] < vocab && tokens[r] != forbidden &&
                         accepted[r] == (tokens[r] == targets[r]) && log_probs[r] <= 0,
                     "residual draws of every shape");
            }
          }
        }
      }
    }
  }
}

// The same for weights, of which every fourth is 0.
void weights_of_every_shape() {
  constexpr int64_t kRows = 3, kDraws = 4;
  for (const auto dtype : {edlm::DType::kFloat32, edlm::DType::kBFloat16, edlm::DType::kFloat16}) {
    for (const int64_t vocab : {1, 3, 15, 16, 17, 127, 128, 129, 2047, 2048, 2049, 4500, 20011}) {
      for (const int64_t gap : {0, 1}) {
        const int64_t stride = vocab + gap, size = edlm::size_of(dtype);
        const int64_t elements = (kRows - 1) * stride + vocab + gap;
        const auto memory = std::make_unique<char[]>(elements * size);
        const auto value_at = [](int64_t i) { return i % 4 == 2 ? 0.0f : float(1 + i % 13); };
        for (int64_t i = 0; i < elements; ++i) {
          const float value = value_at(i);
          const uint16_t word = half(dtype, value);
          std::memcpy(memory.get() + i * size, size == 4 ? (const void*)&value : &word, size);
        }
        const int64_t keys[kRows] = {1, 2, 3};
        const auto tokens = std::make_unique<int64_t[]>(kRows * kDraws);
        const auto log_q = std::make_unique<float[]>(kRows * kDraws);
        const edlm::SampleWeightsArgs args = {.weights = memory.get() + gap * size,
                                              .dtype = dtype,
                                              .rows = vocab == 1 ? 1 : kRows,
                                              .vocab = vocab,
                                              .row_stride = stride,
                                              .keys = keys,
                                              .num_candidates = kDraws,
                                              .tokens = tokens.get(),
                                              .log_q = log_q.get()};
        expect(bool(edlm::cpu::sample_weights(args, 0, args.rows)), "status of weights");
        for (int64_t i = 0; i < args.rows * kDraws; ++i) {
          const int64_t first = gap + i / kDraws * stride;
          double sum = 0;
          for (int64_t v = 0; v < vocab; ++v) sum += value_at(first + v);
          const bool inside = tokens[i] >= 0 && tokens[i] < vocab;
          expect(inside && value_at(first + tokens[i]) > 0 &&
                     std::abs(log_q[i] - std::log(value_at(first + tokens[i]) / sum)) < 1e-5,
                 "draws from weights");
        }
      }
    }
  }
  const float inf = std::numeric_limits<float>::infinity();
  const std::vector<float> rows = {1, -1, 1, inf, 0, -0.0f};
  const int64_t keys[] = {1, 2, 3};
  int64_t tokens[3];
  float log_q[3];
  const edlm::SampleWeightsArgs args = {
      rows.data(), edlm::DType::kFloat32, 3, 2, 2, keys, 1, tokens, log_q};
  expect(edlm::cpu::sample_weights(args, 0, 3).code == edlm::Code::kBadWeight, "negative");
  expect(edlm::cpu::sample_weights(args, 1, 3).row == 1, "+inf");
  expect(edlm::cpu::sample_weights(args, 2, 3).code == edlm::Code::kNoWeight, "all 0");
}

void bad_rows_have_a_status() {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  const std::vector<float> rows = {0, nan, 0, inf, -inf, -inf};
  const int64_t keys[] = {1, 2, 3};
  int64_t tokens[3];
  float log_q[3];
  edlm::SampleCandidatesArgs args = {
      rows.data(), edlm::DType::kFloat32, 3, 2, 2, keys, 1, -1, 1, 0, 1, 0, tokens, log_q, nullptr};
  expect(edlm::cpu::sample_candidates(args, 0, 3).code == edlm::Code::kNotANumber, "NaN");
  expect(edlm::cpu::sample_candidates(args, 1, 3).row == 1, "+inf");
  expect(edlm::cpu::sample_candidates(args, 2, 3).code == edlm::Code::kNothingLeft, "all -inf");
}

void stream_keys_fold() {
  const int64_t seeds[] = {3, 3, -1}, coordinates[] = {1, 2, 2, 1, int64_t{1} << 62, -9};
  int64_t keys[3];
  expect(bool(edlm::cpu::stream_keys({seeds, coordinates, 3, 2, keys}, 0, 3)), "stream_keys");
  expect(keys[0] != keys[1], "a coordinate's place counts");
  expect(keys[2] == int64_t(edlm::fold(edlm::fold(~0ull, int64_t{1} << 62, 0), -9, 1)), "folds");
}

void resample_prefers_weight() {
  const float log_weights[] = {-std::numeric_limits<float>::infinity(), -700.0f, -700.0f, 0.0f,
                               -std::numeric_limits<float>::infinity(), -1000.0f};
  const int64_t keys[] = {1, 2};
  int64_t choice[2];
  float ess[2], log_mean_weight[2];
  const edlm::ResampleArgs args = {log_weights, 2, 3, keys, choice, ess, log_mean_weight};
  expect(bool(edlm::cpu::resample(args, 0, 2)), "resample status");
  expect(choice[0] != 0 && choice[1] == 0, "weight 0 is never chosen");
  expect(std::abs(ess[0] - 2) < 1e-6 && std::abs(ess[1] - 1) < 1e-6, "effective sample size");
  expect(std::abs(log_mean_weight[0] - (-700 + std::log(2.0 / 3))) < 1e-4, "log mean weight");
}

void reveal_steps_partition_time() {
  const double mask_probs[] = {1.0, 0.5, 0.25};
  expect(edlm::reveal_step(0.75, mask_probs, 2) == 1, "u in the first step");
  expect(edlm::reveal_step(0.5, mask_probs, 2) == 1, "lower end belongs to the step");
  expect(edlm::reveal_step(0.25, mask_probs, 2) == 2, "second step");
  expect(edlm::reveal_step(0.1, mask_probs, 2) == 3, "left at the end");
  const int64_t keys[] = {5, -6};
  int64_t steps[2 * 9];
  expect(bool(edlm::cpu::reveal_steps({keys, 2, 9, 2, mask_probs, steps}, 0, 2)), "reveal_steps");
  for (const int64_t step : steps) expect(step >= 1 && step <= 3, "a step in 1..N + 1");
}

}  // namespace

int main() {
  const char* const isa = std::getenv("EDLM_CPU_ISA");
  if (isa && std::strcmp(isa, edlm::cpu::row_pass().name)) {
    std::printf("skipped: this processor does not run %s\n", isa);
    return 77;
  }
  philox_known_answers();
  uniform_is_open();
  draws_follow_probabilities();
  every_shape();
  weights_of_every_shape();
  bad_rows_have_a_status();
  stream_keys_fold();
  resample_prefers_weight();
  reveal_steps_partition_time();
  if (!failures) std::printf("all passed\n");
  return failures != 0;
}
