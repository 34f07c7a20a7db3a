// The entry points of C on the CPU, and what has no device.
#include "guard.h"

#define EDLM_OP(name)                                                        \
  edlm_status edlm_cpu_##name(const edlm_##name##_args* args, int64_t begin, \
                              int64_t end) noexcept {                        \
    return edlm::c::on_rows(edlm::cpu::name, args, begin, end);              \
  }
EDLM_OP(place_candidates)
EDLM_OP(resample)
EDLM_OP(residual_draw)
EDLM_OP(reveal_chosen)
EDLM_OP(reveal_steps)
EDLM_OP(sample_candidates)
EDLM_OP(sample_weights)
EDLM_OP(stream_keys)
EDLM_OP(sum_log_probs)
EDLM_OP(token_log_probs)

int edlm_version(void) noexcept { return EDLM_VERSION; }

const char* edlm_status_string(edlm_code code) noexcept {
  switch (code) {
    case edlm::Code::kOk:
      return "it worked";
    case edlm::Code::kNotANumber:
      return "the row holds NaN or +inf";
    case edlm::Code::kNothingLeft:
      return "the row allows nothing: every entry is -inf";
    case edlm::Code::kBadWeight:
      return "the row holds NaN, a negative number or +inf, or sums to more than float32 holds";
    case edlm::Code::kNoWeight:
      return "the row allows nothing: every entry is 0";
    case edlm::Code::kBadTarget:
      return "the row names a token outside the vocabulary";
    case edlm::Code::kDevice:
      return "CUDA reported an error, whose number is the row";
    case edlm::Code::kBadArgument:
      return "a member of the arguments is out of range: the one at that offset, or with -1 the "
             "rows";
    case edlm::Code::kNoMemory:
      return "there is no memory to work in";
  }
  return "no code of this version";
}
