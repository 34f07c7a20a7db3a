// stream_keys on the CPU.
#include "edlm/stream_keys.h"

namespace edlm::cpu {

Status stream_keys(const StreamKeysArgs& args, int64_t begin, int64_t end) {
  for (int64_t i = begin; i < end; ++i) {
    args.keys[i] = stream_key(args, i);
  }
  return {};
}

}  // namespace edlm::cpu
