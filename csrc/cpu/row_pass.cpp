// Chooses the row pass of this processor, and adds up a row's chunks.
#include "row_pass.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <cstring>
#include <limits>

namespace edlm::cpu {

#if defined(EDLM_X86)
namespace avx512 {
extern const RowPass kRowPass;
}
namespace avx2 {
extern const RowPass kRowPass;
}
#endif
namespace portable {
extern const RowPass kRowPass;
}

namespace {

struct Choice {
  const RowPass& pass;
  bool runs_here;
};

const RowPass& choose() {
#if defined(EDLM_X86)
  __builtin_cpu_init();
  const Choice choices[] = {
      {avx512::kRowPass, __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
                             __builtin_cpu_supports("avx512dq") &&
                             __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("fma")},
      {avx2::kRowPass, __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma")},
      {portable::kRowPass, true}};
#else
  const Choice choices[] = {{portable::kRowPass, true}};
#endif
  const char* wanted = std::getenv("EDLM_CPU_ISA");
  for (const Choice& choice : choices) {
    if (choice.runs_here && wanted && !std::strcmp(wanted, choice.pass.name)) return choice.pass;
  }
  for (const Choice& choice : choices) {
    if (choice.runs_here) return choice.pass;
  }
  return portable::kRowPass;
}

}  // namespace

const RowPass& row_pass() {
  static const RowPass& chosen = choose();
  return chosen;
}

RowTotal RowScratch::total(float inv_temperature) {
  float reference = chunk_reference_[0];
  for (int64_t c = 0; c < chunks_; ++c) reference = std::max(reference, chunk_reference_[c]);
  double sum = 0;
  for (int64_t c = 0; c < chunks_; ++c) {
    const float gap = chunk_reference_[c] - reference;
    // exp(0) is by far the commonest, and inf - inf must not hide which chunk was bad.
    chunk_weight_[c] =
        chunk_sum_[c] * (chunk_reference_[c] == reference ? 1.0f : std::exp(gap * inv_temperature));
    sum += chunk_weight_[c];
    prefix_sum_[c] = sum;
  }
  return {reference, sum, std::log(sum)};
}

void RowScratch::statistics(float inv_temperature, const RowTotal& total, float* to) const {
  float top = -std::numeric_limits<float>::infinity(), second = top;
  double moment = 0;  // sum of x exp(x), x = (logit - total.reference) / T
  for (int64_t c = 0; c < chunks_; ++c) {
    const ChunkStatistics& chunk = chunk_statistics_[c];
    second = std::max({second, std::min(top, chunk.top), chunk.second});
    top = std::max(top, chunk.top);
    if (!(chunk_weight_[c] > 0)) continue;
    const double gap = (double(chunk.reference) - double(total.reference)) * inv_temperature;
    moment += std::exp(gap) * chunk.moment * inv_temperature + gap * chunk_weight_[c];
  }
  const auto log_prob = [&](float logit) {
    const double gap = double(logit) - double(total.reference);
    return float(std::min(0.0, gap * double(inv_temperature) - total.log_z));
  };
  to[0] = float(std::max(0.0, total.log_z - moment / total.sum));
  to[1] = log_prob(top);
  to[2] = log_prob(second);
}

}  // namespace edlm::cpu
