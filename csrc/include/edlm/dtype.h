/// @file
/// Storage types of logits, with 16-bit floats as plain words so that no vendor header is needed.
#pragma once

#include <stdint.h>
#include <string.h>

#include "edlm/config.h"

#ifdef __cplusplus
namespace edlm {
enum class DType : int32_t { kFloat32, kBFloat16, kFloat16 };
}
typedef edlm::DType edlm_dtype;
inline constexpr edlm_dtype EDLM_FLOAT32 = edlm::DType::kFloat32;
inline constexpr edlm_dtype EDLM_BFLOAT16 = edlm::DType::kBFloat16;
inline constexpr edlm_dtype EDLM_FLOAT16 = edlm::DType::kFloat16;
#else
typedef int32_t edlm_dtype;
enum { EDLM_FLOAT32, EDLM_BFLOAT16, EDLM_FLOAT16 };
#endif

#ifdef __cplusplus
namespace edlm {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

EDLM_HD float from_bits(uint32_t bits) {
  float value;
  memcpy(&value, &bits, sizeof value);
  return value;
}

EDLM_HD uint32_t to_bits(float value) {
  uint32_t bits;
  memcpy(&bits, &value, sizeof bits);
  return bits;
}

EDLM_HD float to_float(float value) { return value; }
EDLM_HD float to_float(BFloat16 value) { return from_bits(uint32_t{value.bits} << 16); }

// Shifting the exponent field into place leaves it 112 too small; multiplying by 2^112 mends that
// and normalises subnormals in the same step. Infinity and NaN need their exponent filled up.
EDLM_HD float to_float(Float16 value) {
  const uint32_t sign = uint32_t(value.bits & 0x8000u) << 16;
  const uint32_t magnitude = uint32_t(value.bits & 0x7fffu) << 13;
  if (magnitude >= 0x0f800000u) return from_bits(sign | magnitude | 0x7f800000u);
  const float scaled = from_bits(magnitude) * from_bits(0x77800000u);
  return sign ? -scaled : scaled;
}

template <class T>
struct Type {
  using type = T;
};

// Turns the run-time dtype into a template argument: f(Type<float>{}), f(Type<BFloat16>{}), ...
template <class F>
auto with_dtype(DType dtype, F&& f) {
  switch (dtype) {
    case DType::kBFloat16:
      return f(Type<BFloat16>{});
    case DType::kFloat16:
      return f(Type<Float16>{});
    default:
      return f(Type<float>{});
  }
}

EDLM_HD int64_t size_of(DType dtype) { return dtype == DType::kFloat32 ? 4 : 2; }

}  // namespace edlm
#endif
