// A whole generation of EDLM through the library, without torch: a plan of what each step reveals,
// K candidates from the denoiser, one chosen by the energy, its tokens revealed.
//
//   generate [SEED] [STEPS]      0 steps: one position at a time
#include <edlm/edlm.h>

#include <cstdio>
#include <cstdlib>
#include <limits>
#include <vector>

#include "toy.h"

namespace {

constexpr int64_t kBatch = 3, kCandidates = 4;
constexpr double kWindow = 0.7;

void require(const edlm::Status& status, const char* what) {
  if (status) return;
  std::fprintf(stderr, "%s: %s (row %lld)\n", what, edlm_status_string(status.code),
               (long long)status.row);
  std::exit(1);
}

struct Sequences {
  std::vector<int64_t> canvas, failed;
  std::vector<float> ess, log_z;  // [batch, energy steps]
  int64_t width;
};

// One iteration: a step of each sequence that has one left.
void advance(Sequences& batch, const edlm::Step& step) {
  // The denoiser, only where something is drawn.
  std::vector<float> logits(step.draws * VOCAB);
  for (int64_t r = 0; r < step.draws; ++r) {
    const int64_t i = step.places[r] / LENGTH, l = step.places[r] % LENGTH;
    toy_logits(&batch.canvas[step.rows[i] * LENGTH], l, &logits[r * VOCAB]);
  }

  const int64_t k = step.scored ? kCandidates : 1;
  std::vector<int64_t> tokens(step.draws * k), xt(step.scored * LENGTH),
      x0(step.scored * k * LENGTH), choice(step.scored);
  std::vector<float> log_q(step.draws * k), sums(step.scored * k), energy(step.scored * k);
  require(edlm::cpu::sample_candidates({.logits = logits.data(),
                                        .dtype = edlm::DType::kFloat32,
                                        .rows = step.draws,
                                        .vocab = VOCAB,
                                        .row_stride = VOCAB,
                                        .keys = step.draw_keys,
                                        .num_candidates = k,
                                        .forbidden_id = MASK,
                                        .temperature = 1,
                                        .tokens = tokens.data(),
                                        .log_q = log_q.data()},
                                       0, step.draws),
          "sample_candidates");
  require(edlm::cpu::place_candidates({.tokens = tokens.data(),
                                       .log_q = log_q.data(),
                                       .places = step.places,
                                       .starts = step.starts,
                                       .rows = step.rows,
                                       .sequences = step.sequences,
                                       .scored = step.scored,
                                       .candidates = k,
                                       .length = LENGTH,
                                       .first_position = 0,
                                       .xt = xt.data(),
                                       .x0 = x0.data(),
                                       .sums = sums.data(),
                                       .canvas = batch.canvas.data(),
                                       .failed = batch.failed.data()},
                                      0, step.sequences),
          "place_candidates");
  if (step.scored == 0) return;
  // exp(-E) tilts the denoiser's law; an energy that is to replace it adds `sums`, its log q.
  for (int64_t c = 0; c < step.scored * k; ++c) energy[c] = toy_energy(&x0[c * LENGTH]);
  require(edlm::cpu::reveal_chosen({.energy = energy.data(),
                                    .temperature = 1,
                                    .keys = step.choice_keys,
                                    .x0 = x0.data(),
                                    .places = step.reveal_places,
                                    .starts = step.reveal_starts,
                                    .rows = step.rows,
                                    .columns = step.columns,
                                    .sequences = step.scored,
                                    .candidates = k,
                                    .length = LENGTH,
                                    .width = batch.width,
                                    .choice = choice.data(),
                                    .canvas = batch.canvas.data(),
                                    .ess = batch.ess.data(),
                                    .log_z = batch.log_z.data(),
                                    .failed = batch.failed.data()},
                                   0, step.scored),
          "reveal_chosen");
}

}  // namespace

int main(int argc, char** argv) {
  const int64_t seed = argc > 1 ? std::atoll(argv[1]) : 0;
  const int64_t steps = argc > 2 ? std::atoll(argv[2]) : 6;
  Sequences batch;
  batch.canvas.assign(kBatch * LENGTH, MASK);
  batch.canvas[2] = 5;  // a token that is known
  batch.failed.assign(kBatch, 0);

  // Each sequence has a stream of its own of the seed.
  std::vector<int64_t> seeds(kBatch), seed_of_all(kBatch, seed), numbers = {0, 1, 2};
  require(edlm::cpu::stream_keys({.seeds = seed_of_all.data(),
                                  .coordinates = numbers.data(),
                                  .count = kBatch,
                                  .dims = 1,
                                  .keys = seeds.data()},
                                 0, kBatch),
          "stream_keys");
  edlm::Status status;
  const edlm::Plan plan = edlm::make_plan({.seeds = seeds.data(),
                                           .canvas = batch.canvas.data(),
                                           .batch = kBatch,
                                           .length = LENGTH,
                                           .mask_id = MASK,
                                           .steps = steps,
                                           .energy_low = 1 - kWindow,
                                           .energy_high = 1},
                                          status);
  require(status, "make_plan");
  batch.width = plan->most_energy_steps;
  batch.ess.assign(kBatch * batch.width, std::numeric_limits<float>::quiet_NaN());
  batch.log_z = batch.ess;
  for (int64_t j = 0; j < plan->iterations; ++j) {
    edlm::Step step;
    require(edlm_plan_step(plan.get(), j, &step), "plan_step");
    advance(batch, step);
  }
  for (int64_t b = 0; b < kBatch; ++b) {
    for (int64_t l = 0; l < LENGTH; ++l)
      std::printf("%lld ", (long long)batch.canvas[b * LENGTH + l]);
    std::printf("| %lld |", (long long)plan->steps[b]);
    for (int64_t s = 0; s < plan->energy_steps[b]; ++s) {
      std::printf(" %.9g %.9g", batch.ess[b * batch.width + s], batch.log_z[b * batch.width + s]);
    }
    std::printf("\n");
  }
  return 0;
}
