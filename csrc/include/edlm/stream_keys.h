/// @file
/// stream_keys: the address of a random stream, one 64-bit key from a seed and its coordinates.
#pragma once

#include <stdint.h>

#include "edlm/status.h"

typedef struct edlm_stream_keys_args {
  const int64_t* seeds;        ///< [count]
  const int64_t* coordinates;  ///< [count, dims], folded into the key from left to right
  int64_t count, dims;
  int64_t* keys;  ///< [count], written
} edlm_stream_keys_args;

EDLM_C_BEGIN
/// Keys `begin` to `end` (not included).
EDLM_API edlm_status edlm_cpu_stream_keys(const edlm_stream_keys_args* args, int64_t begin,
                                          int64_t end) EDLM_NOEXCEPT;
EDLM_API edlm_status edlm_cuda_stream_keys(const edlm_stream_keys_args* args,
                                           void* stream) EDLM_NOEXCEPT;
EDLM_C_END

#ifdef __cplusplus
#include "edlm/philox.h"

namespace edlm {

using StreamKeysArgs = edlm_stream_keys_args;

/// `place` is the coordinate's position in the list: (1, 2) and (2, 1) are different streams.
EDLM_HD uint64_t fold(uint64_t key, int64_t coordinate, uint32_t place) {
  return random_bits(key, uint64_t(coordinate), place, Purpose::kStreamKeys);
}

EDLM_HD int64_t stream_key(const StreamKeysArgs& args, int64_t i) {
  uint64_t key = uint64_t(args.seeds[i]);
  for (int64_t d = 0; d < args.dims; ++d) {
    key = fold(key, args.coordinates[i * args.dims + d], uint32_t(d));
  }
  return int64_t(key);
}

namespace cpu {
EDLM_API Status stream_keys(const StreamKeysArgs& args, int64_t begin, int64_t end);
}
namespace cuda {
EDLM_API Status stream_keys(const StreamKeysArgs& args, void* stream);
}

}  // namespace edlm
#endif
