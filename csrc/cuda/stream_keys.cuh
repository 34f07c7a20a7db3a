// stream_keys on CUDA: one thread per key.
#pragma once

#include "device.cuh"
#include "edlm/stream_keys.h"

namespace edlm::cuda {

inline constexpr int kStreamKeysThreads = 128;

EDLM_KERNEL(kStreamKeysThreads) stream_keys_kernel(StreamKeysArgs args) {
  const int64_t i = block_index() * kStreamKeysThreads + thread_index();
  if (i < args.count) args.keys[i] = stream_key(args, i);
}

}  // namespace edlm::cuda
