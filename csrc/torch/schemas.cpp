// The ops as torch sees them. These lines are the contract; kernels are registered per device.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(edlm, m) {
  m.def("stream_keys(Tensor seeds, Tensor coordinates) -> Tensor");
  m.def(
      "sample_candidates(Tensor logits, Tensor keys, int num_candidates, int forbidden_id, "
      "float temperature, float top_p) -> (Tensor, Tensor)");
  m.def(
      "token_log_probs(Tensor logits, Tensor targets, int forbidden_id, float temperature) "
      "-> Tensor");
  m.def("resample(Tensor log_weights, Tensor keys) -> (Tensor, Tensor, Tensor)");
  m.def("reveal_steps(Tensor keys, int length, Tensor mask_probs) -> Tensor");
}
