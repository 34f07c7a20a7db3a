// The reveal plan: edlm_engine/sampling/plan.py and steps.py for the ancestral order, step by step.
#include "edlm/plan.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <vector>

#include "../c/guard.h"

namespace edlm::cpu {
namespace {

struct OwnedPlan : edlm_plan {
  int64_t num_steps;  // N, or 0
  double sigma_eps;
  std::vector<int64_t> seeds, first, numbers, columns;
  std::vector<int64_t> own_steps, own_energy_steps, own_revealed_in;
  std::vector<double> times;
  std::vector<uint8_t> energy;

  // Of the present step.
  std::vector<int64_t> rows, row_numbers, places, starts, draw_keys, reveal_places, reveal_starts,
      choice_keys, row_columns;
  std::vector<float> row_times, sigmas;

  bool fills(int64_t number) const { return num_steps > 0 && number == num_steps + 1; }
};

uint64_t key_of(int64_t seed, Use use) { return fold(uint64_t(seed), int64_t(use), 0); }

// 1 = t_0 > t_1 > ... > t_N = eps, each half counted from its own end.
std::vector<double> log_linear_times(int64_t steps, double eps) {
  std::vector<double> times(steps + 1);
  const double step = (eps - 1) / double(steps);
  for (int64_t i = 0; i <= steps; ++i) {
    times[i] = i < (steps + 1) / 2 ? 1 + step * double(i) : eps - step * double(steps - i);
  }
  return times;
}

// The number of the step that reveals each free position of a sequence, and the time of each
// number.
void number_by_time(const std::vector<double>& times, uint64_t key, int64_t length,
                    int64_t* revealed_in) {
  for (int64_t l = 0; l < length; ++l) {
    if (!revealed_in[l]) continue;
    const double u = reveal_uniform(int64_t(key), l);
    revealed_in[l] = reveal_step(u, times.data(), int64_t(times.size()) - 1);
  }
}
std::vector<double> number_by_rank(uint64_t key, int64_t length, int64_t* revealed_in) {
  std::vector<double> u(length), times;
  std::vector<int64_t> order;
  for (int64_t l = 0; l < length; ++l) {
    if (!revealed_in[l]) continue;
    u[l] = reveal_uniform(int64_t(key), l);
    order.push_back(l);
  }
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) { return u[a] > u[b]; });
  for (const int64_t l : order) {
    times.push_back(u[l]);
    revealed_in[l] = int64_t(times.size());
  }
  return times;
}

std::unique_ptr<OwnedPlan> plan_reveals(const PlanArgs& args) {
  auto plan = std::make_unique<OwnedPlan>();
  plan->batch = args.batch;
  plan->length = args.length;
  plan->num_steps = args.steps;
  plan->sigma_eps = args.sigma_eps;
  plan->seeds.assign(args.seeds, args.seeds + args.batch);
  plan->own_revealed_in.resize(args.batch * args.length);
  std::vector<double> times;
  if (args.steps > 0) times = log_linear_times(args.steps, args.eps);
  for (int64_t b = 0; b < args.batch; ++b) {
    int64_t* const revealed_in = plan->own_revealed_in.data() + b * args.length;
    for (int64_t l = 0; l < args.length; ++l) {
      revealed_in[l] = args.canvas[b * args.length + l] == args.mask_id;
    }
    const uint64_t key = key_of(args.seeds[b], Use::kReveal);
    if (args.steps > 0) {
      number_by_time(times, key, args.length, revealed_in);
    } else {
      times = number_by_rank(key, args.length, revealed_in);
    }
    std::vector<int64_t> numbers(revealed_in, revealed_in + args.length);
    std::sort(numbers.begin(), numbers.end());
    numbers.erase(std::unique(numbers.begin(), numbers.end()), numbers.end());
    if (!numbers.empty() && numbers[0] == 0) numbers.erase(numbers.begin());
    plan->first.push_back(int64_t(plan->numbers.size()));
    int64_t energy_steps = 0;
    for (const int64_t number : numbers) {
      const double time = times[number - 1];
      const bool energy = args.energy_low <= time && time <= args.energy_high &&
                          !(args.fill_without_energy && plan->fills(number));
      plan->numbers.push_back(number);
      plan->times.push_back(time);
      plan->energy.push_back(energy);
      plan->columns.push_back(energy_steps);
      energy_steps += energy;
    }
    plan->own_steps.push_back(int64_t(numbers.size()));
    plan->own_energy_steps.push_back(energy_steps);
    plan->iterations = std::max(plan->iterations, int64_t(numbers.size()));
    plan->most_energy_steps = std::max(plan->most_energy_steps, energy_steps);
  }
  plan->steps = plan->own_steps.data();
  plan->energy_steps = plan->own_energy_steps.data();
  plan->revealed_in = plan->own_revealed_in.data();
  return plan;
}

// A sequence's step `at`, the next of the iteration.
void add_sequence(OwnedPlan& plan, int64_t b, int64_t at) {
  const int64_t number = plan.numbers[at], place = int64_t(plan.rows.size()) * plan.length;
  const bool energy = plan.energy[at];
  const uint64_t key = fold(key_of(plan.seeds[b], Use::kCandidates), number, 1);
  const int64_t* const revealed_in = plan.revealed_in + b * plan.length;
  for (int64_t l = 0; l < plan.length; ++l) {
    if (energy ? revealed_in[l] < number : revealed_in[l] != number) continue;
    plan.places.push_back(place + l);
    plan.draw_keys.push_back(int64_t(fold(key, l, 2)));
    if (energy && revealed_in[l] == number) plan.reveal_places.push_back(place + l);
  }
  plan.rows.push_back(b);
  plan.row_numbers.push_back(number);
  plan.row_times.push_back(float(plan.times[at]));
  plan.sigmas.push_back(float(-std::log1p(-(1 - plan.sigma_eps) * plan.times[at])));
  plan.starts.push_back(int64_t(plan.places.size()));
  if (!energy) return;
  plan.reveal_starts.push_back(int64_t(plan.reveal_places.size()));
  plan.choice_keys.push_back(int64_t(fold(key_of(plan.seeds[b], Use::kResample), number, 1)));
  plan.row_columns.push_back(plan.columns[at]);
}

Step step_of(OwnedPlan& plan, int64_t iteration) {
  for (auto* of_step : {&plan.rows, &plan.row_numbers, &plan.places, &plan.draw_keys,
                        &plan.reveal_places, &plan.choice_keys, &plan.row_columns}) {
    of_step->clear();
  }
  plan.row_times.clear();
  plan.sigmas.clear();
  plan.starts.assign(1, 0);
  plan.reveal_starts.assign(1, 0);
  // With energy first, fills without it last.
  Step step = {};
  for (const int kind : {0, 1, 2}) {
    const int64_t before = int64_t(plan.places.size());
    for (int64_t b = 0; b < plan.batch; ++b) {
      const int64_t at = plan.first[b] + iteration;
      if (iteration >= plan.steps[b]) continue;
      if (kind == (plan.energy[at] ? 0 : plan.fills(plan.numbers[at]) ? 2 : 1)) {
        add_sequence(plan, b, at);
      }
    }
    if (kind == 0) step.scored = int64_t(plan.rows.size());
    if (kind == 2) step.fill_draws = int64_t(plan.places.size()) - before;
  }
  step.sequences = int64_t(plan.rows.size());
  step.draws = int64_t(plan.places.size());
  step.reveals = int64_t(plan.reveal_places.size());
  step.rows = plan.rows.data();
  step.numbers = plan.row_numbers.data();
  step.times = plan.row_times.data();
  step.sigmas = plan.sigmas.data();
  step.places = plan.places.data();
  step.starts = plan.starts.data();
  step.draw_keys = plan.draw_keys.data();
  step.reveal_places = plan.reveal_places.data();
  step.reveal_starts = plan.reveal_starts.data();
  step.choice_keys = plan.choice_keys.data();
  step.columns = plan.row_columns.data();
  return step;
}

}  // namespace
}  // namespace edlm::cpu

edlm_status edlm_plan_create(const edlm_plan_args* args, edlm_plan** plan) noexcept {
  using namespace edlm;
  if (!plan) return c::wrong(-1);
  *plan = nullptr;
  if (!args) return c::wrong(-1);
  if (const Status status = c::check(*args); !status) return status;
  return c::without_exceptions([&]() -> Status {
    *plan = cpu::plan_reveals(*args).release();
    return {};
  });
}

edlm_status edlm_plan_step(edlm_plan* plan, int64_t iteration, edlm_step* step) noexcept {
  using namespace edlm;
  if (!plan || !step || iteration < 0 || iteration >= plan->iterations) return c::wrong(-1);
  return c::without_exceptions([&]() -> Status {
    *step = cpu::step_of(*static_cast<cpu::OwnedPlan*>(plan), iteration);
    return {};
  });
}

void edlm_plan_destroy(edlm_plan* plan) noexcept {
  delete static_cast<edlm::cpu::OwnedPlan*>(plan);
}
