/* The entry points of C: what they refuse and how they say so, and plans. */
#include <edlm/edlm.h>
#include <math.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>

static int failures = 0;

static void expect(int holds, const char* what) {
  if (holds) return;
  printf("FAILED: %s\n", what);
  ++failures;
}

static int refused(edlm_status status, int member) {
  return status.code == EDLM_BAD_ARGUMENT && status.argument == member;
}

/* Sets a member to a bad value, and back. */
#define REFUSED(args, op, type, member, bad)                                        \
  do {                                                                              \
    const type before = args;                                                       \
    args.member = bad;                                                              \
    expect(refused(op(&args, 0, 1), (int)offsetof(type, member)), #op " " #member); \
    args = before;                                                                  \
  } while (0)

static void bad_arguments(void) {
  const float logits[4] = {0, 1, 2, 3};
  const int64_t key = 7, target = 2;
  int64_t token;
  float log_q;
  edlm_sample_candidates_args draw = {.logits = logits,
                                      .dtype = EDLM_FLOAT32,
                                      .rows = 1,
                                      .vocab = 4,
                                      .row_stride = 4,
                                      .keys = &key,
                                      .num_candidates = 1,
                                      .forbidden_id = -1,
                                      .temperature = 1,
                                      .top_p = 1,
                                      .tokens = &token,
                                      .log_q = &log_q};
#define DRAW(member, bad) \
  REFUSED(draw, edlm_cpu_sample_candidates, edlm_sample_candidates_args, member, bad)
  DRAW(logits, NULL);
  DRAW(dtype, 3);
  DRAW(rows, -1);
  DRAW(vocab, 0);
  DRAW(keys, NULL);
  DRAW(num_candidates, 0);
  DRAW(forbidden_id, 4);
  DRAW(temperature, 0);
  DRAW(temperature, NAN);
  DRAW(top_k, -1);
  DRAW(top_p, 0); /* a member that was forgotten */
  DRAW(min_p, 2);
  DRAW(tokens, NULL);
  DRAW(log_q, NULL);
  expect(edlm_cpu_sample_candidates(&draw, 0, 1).code == EDLM_OK && token >= 0 && token < 4 &&
             log_q < 0,
         "a draw");
  expect(refused(edlm_cpu_sample_candidates(&draw, 0, 2), -1), "rows that are not there");
  expect(refused(edlm_cpu_sample_candidates(&draw, 1, 0), -1), "rows backwards");
  expect(refused(edlm_cpu_sample_candidates(NULL, 0, 1), -1), "no arguments");

  edlm_token_log_probs_args score = {.logits = logits,
                                     .dtype = EDLM_FLOAT32,
                                     .rows = 1,
                                     .vocab = 4,
                                     .row_stride = 4,
                                     .targets = &target,
                                     .forbidden_id = -1,
                                     .temperature = 1,
                                     .log_probs = &log_q};
  REFUSED(score, edlm_cpu_token_log_probs, edlm_token_log_probs_args, targets, NULL);
  REFUSED(score, edlm_cpu_token_log_probs, edlm_token_log_probs_args, temperature, -1);
  score.vocab = 2;
  edlm_status status = edlm_cpu_token_log_probs(&score, 0, 1);
  expect(status.code == EDLM_BAD_TARGET && status.row == 0 && status.argument == 1,
         "a target outside the vocabulary");

  const edlm_logit_rows rows = {logits, EDLM_FLOAT32, 1, 4, 4, -1, 1};
  uint8_t accepted;
  edlm_residual_draw_args redraw = {rows, rows, &target, &key, &token, &accepted, &log_q};
  REFUSED(redraw, edlm_cpu_residual_draw, edlm_residual_draw_args, p.temperature, 0);
  REFUSED(redraw, edlm_cpu_residual_draw, edlm_residual_draw_args, q.forbidden_id, 9);
  REFUSED(redraw, edlm_cpu_residual_draw, edlm_residual_draw_args, q.rows, 2);
  REFUSED(redraw, edlm_cpu_residual_draw, edlm_residual_draw_args, q.dtype, EDLM_FLOAT16);
  REFUSED(redraw, edlm_cpu_residual_draw, edlm_residual_draw_args, accepted, NULL);

  const float weights[2] = {NAN, 0};
  edlm_resample_args choose = {weights, 1, 2, &key, &token, &log_q, &log_q};
  REFUSED(choose, edlm_cpu_resample, edlm_resample_args, candidates, 0);
  expect(edlm_cpu_resample(&choose, 0, 1).code == EDLM_NOT_A_NUMBER, "NaN");
  /* More than any memory: an exception of C++ that does not get out. */
  choose.candidates = INT64_MAX / 4;
  expect(edlm_cpu_resample(&choose, 0, 1).code == EDLM_NO_MEMORY, "no memory");
}

static void words(void) {
  for (int32_t code = EDLM_OK; code <= EDLM_NO_MEMORY; ++code) {
    for (int32_t other = code + 1; other <= EDLM_NO_MEMORY + 1; ++other) {
      expect(strcmp(edlm_status_string(code), edlm_status_string(other)) != 0, "words of a code");
    }
  }
  expect(edlm_version() == EDLM_VERSION, "version");
}

static void plans(void) {
  enum { LENGTH = 6 };
  const int64_t seeds[2] = {11, -4};
  int64_t canvas[2 * LENGTH];
  for (int i = 0; i < 2 * LENGTH; ++i) canvas[i] = i % 4 == 0 ? 1 : 9;
  edlm_plan_args args = {.seeds = seeds,
                         .canvas = canvas,
                         .batch = 2,
                         .length = LENGTH,
                         .mask_id = 9,
                         .steps = 4,
                         .energy_low = 0.5,
                         .energy_high = 1,
                         .eps = 1e-5,
                         .sigma_eps = 1e-3};
  edlm_plan* plan = NULL;
  edlm_plan_args bad = args;
  bad.eps = 0;
  expect(refused(edlm_plan_create(&bad, &plan), (int)offsetof(edlm_plan_args, eps)) && !plan,
         "a plan without eps");
  for (args.steps = 0; args.steps <= 4; args.steps += 4) {
    expect(edlm_plan_create(&args, &plan).code == EDLM_OK, "a plan");
    int64_t left = 0, taken[2] = {0, 0}, scored[2] = {0, 0};
    for (int i = 0; i < 2 * LENGTH; ++i) left += canvas[i] == 9;
    for (int64_t j = 0; j < plan->iterations; ++j) {
      edlm_step step;
      expect(edlm_plan_step(plan, j, &step).code == EDLM_OK, "a step");
      left -= step.reveals + step.draws - step.starts[step.scored];
      for (int64_t i = 0; i < step.sequences; ++i) {
        ++taken[step.rows[i]];
        scored[step.rows[i]] += i < step.scored;
        expect(step.starts[i + 1] > step.starts[i], "a step draws");
      }
    }
    expect(left == 0, "every position is revealed once");
    for (int b = 0; b < 2; ++b) {
      expect(taken[b] == plan->steps[b] && scored[b] == plan->energy_steps[b], "steps in all");
    }
    edlm_step none;
    expect(refused(edlm_plan_step(plan, plan->iterations, &none), -1), "a step too far");
    edlm_plan_destroy(plan);
  }
  edlm_plan_destroy(NULL);
  args.batch = 0;
  expect(edlm_plan_create(&args, &plan).code == EDLM_OK && plan->iterations == 0, "an empty plan");
  edlm_plan_destroy(plan);
}

int main(void) {
  bad_arguments();
  words();
  plans();
  if (!failures) printf("all passed\n");
  return failures != 0;
}
