// stream_keys on the CPU.
#include "edlm/stream_keys.h"

namespace edlm::cpu {

Status stream_keys(const StreamKeysArgs& args, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    uint64_t key = uint64_t(args.seeds[i]);
    for (int64_t d = 0; d < args.dims; ++d) {
      key = fold(key, args.coordinates[i * args.dims + d], uint32_t(d));
    }
    args.keys[i] = int64_t(key);
  }
  return {};
}

}  // namespace edlm::cpu
