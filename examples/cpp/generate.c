/* generate.cpp in C, for one sequence and with fixed room: no memory is asked for in the loop.
 *
 *   generate_c [SEED] [STEPS]      0 steps: one position at a time */
#include <edlm/edlm.h>
#include <stdio.h>
#include <stdlib.h>

#include "toy.h"

enum { CANDIDATES = 4 };

static int64_t canvas[LENGTH], xt[LENGTH], x0[CANDIDATES * LENGTH], tokens[CANDIDATES * LENGTH];
static int64_t choice, failed;
static float logits[LENGTH * VOCAB], log_q[CANDIDATES * LENGTH], sums[CANDIDATES];
static float energy[CANDIDATES], ess[LENGTH], log_z[LENGTH];

static void require(edlm_status status, const char* what) {
  if (status.code == EDLM_OK) return;
  fprintf(stderr, "%s: %s (row %lld)\n", what, edlm_status_string(status.code),
          (long long)status.row);
  exit(1);
}

static void advance(const edlm_step* step, int64_t width) {
  const int64_t k = step->scored ? CANDIDATES : 1;
  for (int64_t r = 0; r < step->draws; ++r) {
    toy_logits(canvas, step->places[r], logits + r * VOCAB);
  }
  const edlm_sample_candidates_args draw = {.logits = logits,
                                            .dtype = EDLM_FLOAT32,
                                            .rows = step->draws,
                                            .vocab = VOCAB,
                                            .row_stride = VOCAB,
                                            .keys = step->draw_keys,
                                            .num_candidates = k,
                                            .forbidden_id = MASK,
                                            .temperature = 1,
                                            .top_p = 1,
                                            .tokens = tokens,
                                            .log_q = log_q};
  require(edlm_cpu_sample_candidates(&draw, 0, step->draws), "sample_candidates");
  const edlm_place_candidates_args place = {.tokens = tokens,
                                            .log_q = log_q,
                                            .places = step->places,
                                            .starts = step->starts,
                                            .rows = step->rows,
                                            .sequences = step->sequences,
                                            .scored = step->scored,
                                            .candidates = k,
                                            .length = LENGTH,
                                            .xt = xt,
                                            .x0 = x0,
                                            .sums = sums,
                                            .canvas = canvas,
                                            .failed = &failed};
  require(edlm_cpu_place_candidates(&place, 0, step->sequences), "place_candidates");
  if (step->scored == 0) return;
  for (int64_t c = 0; c < k; ++c) energy[c] = toy_energy(x0 + c * LENGTH);
  const edlm_reveal_chosen_args choose = {.energy = energy,
                                          .temperature = 1,
                                          .keys = step->choice_keys,
                                          .x0 = x0,
                                          .places = step->reveal_places,
                                          .starts = step->reveal_starts,
                                          .rows = step->rows,
                                          .columns = step->columns,
                                          .sequences = step->scored,
                                          .candidates = k,
                                          .length = LENGTH,
                                          .width = width,
                                          .choice = &choice,
                                          .canvas = canvas,
                                          .ess = ess,
                                          .log_z = log_z,
                                          .failed = &failed};
  require(edlm_cpu_reveal_chosen(&choose, 0, step->scored), "reveal_chosen");
}

int main(int argc, char** argv) {
  const int64_t seed_of_all = argc > 1 ? atoll(argv[1]) : 0, number = 0;
  int64_t seed;
  for (int64_t l = 0; l < LENGTH; ++l) canvas[l] = MASK;
  canvas[2] = 5; /* a token that is known */
  const edlm_stream_keys_args stream = {
      .seeds = &seed_of_all, .coordinates = &number, .count = 1, .dims = 1, .keys = &seed};
  require(edlm_cpu_stream_keys(&stream, 0, 1), "stream_keys");

  const edlm_plan_args args = {.seeds = &seed,
                               .canvas = canvas,
                               .batch = 1,
                               .length = LENGTH,
                               .mask_id = MASK,
                               .steps = argc > 2 ? atoll(argv[2]) : 6,
                               .energy_low = 1 - 0.7,
                               .energy_high = 1,
                               .eps = 1e-5,
                               .sigma_eps = 1e-3};
  edlm_plan* plan;
  require(edlm_plan_create(&args, &plan), "plan_create");
  for (int64_t j = 0; j < plan->iterations; ++j) {
    edlm_step step;
    require(edlm_plan_step(plan, j, &step), "plan_step");
    advance(&step, plan->most_energy_steps);
  }
  for (int64_t l = 0; l < LENGTH; ++l) printf("%lld ", (long long)canvas[l]);
  printf("| %lld |", (long long)plan->steps[0]);
  for (int64_t s = 0; s < plan->energy_steps[0]; ++s) printf(" %.9g %.9g", ess[s], log_z[s]);
  printf("\n");
  edlm_plan_destroy(plan);
  return 0;
}
