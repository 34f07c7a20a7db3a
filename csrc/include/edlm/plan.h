/// @file
/// The reveal plan: which positions each step reveals, which steps a sequence takes at all, at
/// which times, which of them take the energy, and the random streams of what they draw. All of it
/// is known before any model runs, and lies on the host.
///
/// It is the ancestral process of the log-linear schedule (mask_prob(t) = t), in N steps of equal
/// length or, continuously, one position at a time. Sequences advance by themselves: iteration j is
/// every sequence's own j-th step that reveals something. They do not depend on one another, so a
/// plan of some sequences is that of each alone.
#pragma once

#include <stdint.h>

#include "edlm/status.h"

typedef struct edlm_plan_args {
  const int64_t* seeds;   ///< [batch]: of each sequence; of one seed for all, stream_keys(seed, b)
  const int64_t* canvas;  ///< [batch, length]: mask_id at the positions that are to be revealed
  int64_t batch, length;
  int64_t mask_id;
  int64_t steps;  ///< N >= 1, or 0 for one position at a time
  /// Steps at times from energy_low to energy_high take the energy: [1 - window, 1], or with low >
  /// high none.
  double energy_low EDLM_DEFAULT(1), energy_high EDLM_DEFAULT(0);
  double eps EDLM_DEFAULT(1e-5);        ///< in (0, 1): t_N, the last time
  double sigma_eps EDLM_DEFAULT(1e-3);  ///< in (0, 1): sigma(t) = -log(1 - (1 - sigma_eps) t)
  /// Not 0: what is left at t_N is filled without the energy.
  int32_t fill_without_energy EDLM_DEFAULT(0);
} edlm_plan_args;

/// What a plan says of all sequences. Its memory is the plan's.
typedef struct edlm_plan {
  int64_t batch, length;
  int64_t iterations;           ///< J: the most steps that any sequence takes
  int64_t most_energy_steps;    ///< S: the most of them with energy, the columns of ess and log_z
  const int64_t* steps;         ///< [batch]: how many each takes, one denoiser evaluation each
  const int64_t* energy_steps;  ///< [batch]: how many of them take the energy
  const int64_t* revealed_in;   ///< [batch, length]: the number of the step, 0 if never masked
} edlm_plan;

/// Iteration j of n sequences, as place_candidates and reveal_chosen take it. The first `scored`
/// sequences, E, take the energy and draw at all positions that are masked now; the others draw
/// only where they reveal, and those that fill what was left at t_N come last. Places are flat in
/// [n, length], ascending. The memory is the plan's, until its next step.
typedef struct edlm_step {
  int64_t sequences, scored;     ///< n and E
  int64_t draws, fill_draws;     ///< all, and those, the last, of sequences that fill what was left
  int64_t reveals;               ///< of the first E sequences
  const int64_t* rows;           ///< [n]: their places in the batch
  const int64_t* numbers;        ///< [n]: of their steps, from 1; N + 1 fills what was left at t_N
  const float* times;            ///< [n]
  const float* sigmas;           ///< [n]: total noise at these times, for the denoiser
  const int64_t* places;         ///< [draws]
  const int64_t* starts;         ///< [n + 1]: those of sequence i begin at starts[i]; starts[0] = 0
  const int64_t* draw_keys;      ///< [draws]: the streams of sample_candidates
  const int64_t* reveal_places;  ///< [reveals]
  const int64_t* reveal_starts;  ///< [E + 1]
  const int64_t* choice_keys;    ///< [E]: the streams of reveal_chosen
  const int64_t* columns;        ///< [E]: how many energy steps the sequence took before
} edlm_step;

EDLM_C_BEGIN
/// Makes a plan; null is written if the status is not EDLM_OK.
EDLM_API edlm_status edlm_plan_create(const edlm_plan_args* args, edlm_plan** plan) EDLM_NOEXCEPT;
/// Iteration `iteration`, from 0, in any order and as often as wanted. One thread at a time.
EDLM_API edlm_status edlm_plan_step(edlm_plan* plan, int64_t iteration,
                                    edlm_step* step) EDLM_NOEXCEPT;
/// Null is no plan and does no harm.
EDLM_API void edlm_plan_destroy(edlm_plan* plan) EDLM_NOEXCEPT;
EDLM_C_END

#ifdef __cplusplus
#include <memory>

namespace edlm {

using PlanArgs = edlm_plan_args;
using Step = edlm_step;

/// What a random stream of a sequence is for: the coordinate that follows the seed in its address.
enum class Use : int64_t {
  kReveal,      ///< stream_keys(seed, 0), then the position: when it is revealed
  kCandidates,  ///< stream_keys(seed, 1, step, position): what is drawn there
  kResample,    ///< stream_keys(seed, 2, step): which candidate is chosen
};

struct PlanDeleter {
  void operator()(edlm_plan* plan) const { edlm_plan_destroy(plan); }
};
using Plan = std::unique_ptr<edlm_plan, PlanDeleter>;

/// A plan, or null with the reason in `status`.
inline Plan make_plan(const PlanArgs& args, Status& status) {
  edlm_plan* plan = nullptr;
  status = edlm_plan_create(&args, &plan);
  return Plan(plan);
}

}  // namespace edlm
#endif
