// Links against the CUDA ops, and calls one with arguments that are refused before any launch.
#include <edlm/edlm.h>

#include <cstddef>

int main() {
  edlm_stream_keys_args args = {nullptr, nullptr, -1, 0, nullptr};
  const edlm_status status = edlm_cuda_stream_keys(&args, nullptr);
  const bool refused = status.code == EDLM_BAD_ARGUMENT &&
                       status.argument == int(offsetof(edlm_stream_keys_args, count));
  return refused && edlm_version() == EDLM_VERSION ? 0 : 1;
}
