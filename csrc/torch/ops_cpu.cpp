// The ops on the CPU: rows are split over torch's threads, and a bad row raises.
#include <algorithm>
#include <mutex>

#include "tensors.h"

namespace edlm::ring {
namespace {

// Rows go to torch's own threads. Of several bad rows the first is reported, whatever the split.
template <class Args>
Status over_rows(Status (*op)(const Args&, int64_t, int64_t), const Args& args, int64_t rows,
                 int64_t work_per_row) {
  // About 20 microseconds of work is worth waking a thread for.
  const int64_t grain = std::max<int64_t>(1, 65536 / std::max<int64_t>(1, work_per_row));
  std::mutex mutex;
  Status first = {};
  torch::stable::parallel_for(0, rows, grain, [&](int64_t begin, int64_t end) {
    const Status status = op(args, begin, end);
    if (status) return;
    const std::lock_guard lock(mutex);
    if (first || status.row < first.row) first = status;
  });
  return first;
}

struct Cpu : Tensors {
  static void run(const StreamKeysArgs& args, const Tensor&) {
    check<Cpu>(over_rows(cpu::stream_keys, args, args.count, 64 * args.dims), {"seeds"});
  }
  static void run(const SampleCandidatesArgs& args, const Tensor&) {
    const int64_t work = args.vocab + 256 * args.num_candidates;
    check<Cpu>(over_rows(cpu::sample_candidates, args, args.rows, work), {"logits"});
  }
  static void run(const SampleWeightsArgs& args, const Tensor&) {
    const int64_t work = args.vocab / 2 + 256 * args.num_candidates;
    check<Cpu>(over_rows(cpu::sample_weights, args, args.rows, work), {"weights"});
  }
  static void run(const TokenLogProbsArgs& args, const Tensor&) {
    check<Cpu>(over_rows(cpu::token_log_probs, args, args.rows, args.vocab), {"logits", "targets"});
  }
  static void run(const ResampleArgs& args, const Tensor&) {
    check<Cpu>(over_rows(cpu::resample, args, args.batch, 32 * args.candidates), {"log_weights"});
  }
  static void run(const PlaceCandidatesArgs& args, const Tensor&) {
    const int64_t work = 4 * args.length * (args.scored ? args.candidates : 1);
    check<Cpu>(over_rows(cpu::place_candidates, args, args.sequences, work), {"tokens"});
  }
  static void run(const RevealChosenArgs& args, const Tensor&) {
    const int64_t work = args.length + 32 * args.candidates;
    check<Cpu>(over_rows(cpu::reveal_chosen, args, args.sequences, work), {"log_weights"});
  }
  static void run(const SumLogProbsArgs& args, const Tensor&) {
    const int64_t work = 4 * args.count / std::max<int64_t>(1, args.sequences);
    check<Cpu>(over_rows(cpu::sum_log_probs, args, args.sequences, work), {"log_probs"});
  }
  static void run(const ResidualDrawArgs& args, const Tensor&) {
    const int64_t work = args.p.vocab + args.q.vocab;
    check<Cpu>(over_rows(cpu::residual_draw, args, args.p.rows, work),
               {"logits_p", "logits_q", "draft"});
  }
  static void run(const RevealStepsArgs& args, const Tensor&) {
    check<Cpu>(over_rows(cpu::reveal_steps, args, args.batch, 64 * args.length), {"keys"});
  }
};

}  // namespace
}  // namespace edlm::ring

STABLE_TORCH_LIBRARY_IMPL(edlm, CPU, m) { edlm::ring::register_ops<edlm::ring::Cpu>(m); }
