// Philox4x32-10 (Salmon et al., SC 2011): random words as a pure function of key and counter. C++.
#pragma once

#include <cstdint>

#include "edlm/config.h"

namespace edlm {

struct Words {
  uint32_t w[4];
};

EDLM_HD Words philox(uint64_t key, Words counter) {
  uint32_t key_lo = uint32_t(key), key_hi = uint32_t(key >> 32);
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * counter.w[0];
    const uint64_t b = uint64_t{0xCD9E8D57u} * counter.w[2];
    counter = {{uint32_t(b >> 32) ^ counter.w[1] ^ key_lo, uint32_t(b),
                uint32_t(a >> 32) ^ counter.w[3] ^ key_hi, uint32_t(a)}};
    key_lo += 0x9E3779B9u;
    key_hi += 0xBB67AE85u;
  }
  return counter;
}

// The last counter word tells the uses of one key apart, so that no two of them share words.
enum class Purpose : uint32_t {
  kStreamKeys = 0x53545245u,
  kSampleCandidates = 0x53414D50u,
  kResample = 0x52455341u,
  kResidualDraw = 0x52455344u,
};

// 64 bits addressed by (key, index, lane, purpose).
EDLM_HD uint64_t random_bits(uint64_t key, uint64_t index, uint32_t lane, Purpose purpose) {
  const Words words =
      philox(key, {{uint32_t(index), uint32_t(index >> 32), lane, uint32_t(purpose)}});
  return words.w[0] | uint64_t{words.w[1]} << 32;
}

// Centred in one of 2^52 bins: in [2^-53, 1 - 2^-53], so never 0 or 1. A 53rd bit would make the
// last centre round to 1.
EDLM_HD double uniform(uint64_t bits) {
  return (double(bits >> 12) + 0.5) * (1.0 / 4503599627370496.0);
}

}  // namespace edlm
