/// @file
/// What every op returns: a kernel never throws, prints or exits, its caller decides.
#pragma once

#include <stdint.h>

#include "edlm/config.h"

#ifdef __cplusplus
namespace edlm {

enum class Code : int32_t {
  kOk,
  kNotANumber,   ///< `row` holds NaN or +inf where a token (or candidate) is allowed
  kNothingLeft,  ///< `row` allows nothing: every logit (or log-weight) is -inf
  kBadWeight,    ///< `row` holds NaN, a negative weight or +inf, or more than a float holds in all
  kNoWeight,     ///< `row` holds nothing but weights of 0
  kBadTarget,    ///< `row` names a token outside the vocabulary
  kDevice,       ///< `row` is the cudaError_t
  kBadArgument,  ///< of C alone: the member at offset `argument` of the struct is out of range
  kNoMemory,     ///< of C alone: the host has no room to work in
};

}  // namespace edlm
typedef edlm::Code edlm_code;
inline constexpr edlm_code EDLM_OK = edlm::Code::kOk;
inline constexpr edlm_code EDLM_NOT_A_NUMBER = edlm::Code::kNotANumber;
inline constexpr edlm_code EDLM_NOTHING_LEFT = edlm::Code::kNothingLeft;
inline constexpr edlm_code EDLM_BAD_WEIGHT = edlm::Code::kBadWeight;
inline constexpr edlm_code EDLM_NO_WEIGHT = edlm::Code::kNoWeight;
inline constexpr edlm_code EDLM_BAD_TARGET = edlm::Code::kBadTarget;
inline constexpr edlm_code EDLM_DEVICE_ERROR = edlm::Code::kDevice;
inline constexpr edlm_code EDLM_BAD_ARGUMENT = edlm::Code::kBadArgument;
inline constexpr edlm_code EDLM_NO_MEMORY = edlm::Code::kNoMemory;
#else
typedef int32_t edlm_code;
enum {
  EDLM_OK,
  EDLM_NOT_A_NUMBER,
  EDLM_NOTHING_LEFT,
  EDLM_BAD_WEIGHT,
  EDLM_NO_WEIGHT,
  EDLM_BAD_TARGET,
  EDLM_DEVICE_ERROR,
  EDLM_BAD_ARGUMENT,
  EDLM_NO_MEMORY
};
#endif

typedef struct EDLM_NODISCARD edlm_status {
  edlm_code code;
  int64_t row;       ///< of the first bad row of the range, where the code says so
  int32_t argument;  ///< of an op with more than one that has rows: which of them, in their order
#ifdef __cplusplus
  explicit operator bool() const { return code == edlm::Code::kOk; }
#endif
} edlm_status;

EDLM_C_BEGIN
/// A code in words: "a row holds NaN or +inf where a token is allowed". Never null, never to be
/// freed.
EDLM_API const char* edlm_status_string(edlm_code code) EDLM_NOEXCEPT;
EDLM_C_END

#ifdef __cplusplus
namespace edlm {
using Status = edlm_status;
}
#endif
