// The core without torch or Python: known answers, and an embedder's use of the ops.
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <limits>
#include <vector>

#include "edlm/philox.h"
#include "edlm/resample.h"
#include "edlm/reveal_steps.h"
#include "edlm/sample_candidates.h"
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

void bad_rows_have_a_status() {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float inf = std::numeric_limits<float>::infinity();
  const std::vector<float> rows = {0, nan, 0, inf, -inf, -inf};
  const int64_t keys[] = {1, 2, 3};
  int64_t tokens[3];
  float log_q[3];
  edlm::SampleCandidatesArgs args = {
      rows.data(), edlm::DType::kFloat32, 3, 2, 2, keys, 1, -1, 1.0f, 1.0f, tokens, log_q};
  expect(edlm::cpu::sample_candidates(args, 0, 3).code == edlm::Code::kNotANumber, "NaN");
  expect(edlm::cpu::sample_candidates(args, 1, 3).row == 1, "+inf");
  expect(edlm::cpu::sample_candidates(args, 2, 3).code == edlm::Code::kNothingLeft, "all -inf");
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
}

}  // namespace

int main() {
  philox_known_answers();
  uniform_is_open();
  draws_follow_probabilities();
  bad_rows_have_a_status();
  resample_prefers_weight();
  reveal_steps_partition_time();
  if (!failures) std::printf("all passed\n");
  return failures != 0;
}
