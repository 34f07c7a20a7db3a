// What every op returns: a kernel never throws, prints or exits, its caller decides.
#pragma once

#include <cstdint>

namespace edlm {

enum class Code : int32_t {
  kOk,
  kNotANumber,   // `row` holds NaN or +inf where a token (or candidate) is allowed
  kNothingLeft,  // `row` allows nothing: every logit (or log-weight) is -inf
  kBadWeight,    // `row` holds NaN, a negative weight or +inf, or more than a float holds in all
  kNoWeight,     // `row` holds nothing but weights of 0
  kBadTarget,    // `row` names a token outside the vocabulary
  kDevice,       // `row` is the cudaError_t
};

struct [[nodiscard]] Status {
  Code code = Code::kOk;
  int64_t row = -1;
  int argument = 0;  // of an op with more than one that has rows: which of them, in their order

  explicit operator bool() const { return code == Code::kOk; }
};

}  // namespace edlm
