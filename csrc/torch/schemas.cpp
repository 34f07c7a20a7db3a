// The ops as torch sees them. These lines are the contract; kernels are registered per device.
#include <torch/csrc/stable/library.h>

STABLE_TORCH_LIBRARY(edlm, m) {
  m.def("stream_keys(Tensor seeds, Tensor coordinates) -> Tensor");
  m.def(
      "sample_candidates(Tensor logits, Tensor keys, int num_candidates, int forbidden_id, "
      "float temperature, float top_p, int top_k=0, float min_p=0.0) -> (Tensor, Tensor)");
  m.def(
      "sample_candidates_statistics(Tensor logits, Tensor keys, int num_candidates, "
      "int forbidden_id, float temperature, float top_p, int top_k=0, float min_p=0.0) "
      "-> (Tensor, Tensor, Tensor)");
  m.def("sample_weights(Tensor weights, Tensor keys, int num_candidates) -> (Tensor, Tensor)");
  m.def(
      "token_log_probs(Tensor logits, Tensor targets, int forbidden_id, float temperature) "
      "-> Tensor");
  m.def("resample(Tensor log_weights, Tensor keys) -> (Tensor, Tensor, Tensor)");
  m.def(
      "place_candidates(Tensor tokens, Tensor log_q, Tensor places, Tensor starts, Tensor rows, "
      "int first_position, Tensor(a!) x0, Tensor(b!) canvas, Tensor(c!) failed) "
      "-> (Tensor, Tensor)");
  m.def(
      "reveal_chosen(Tensor energy, float temperature, Tensor keys, Tensor x0, Tensor places, "
      "Tensor starts, Tensor rows, Tensor columns, Tensor(a!) canvas, Tensor(b!) ess, "
      "Tensor(c!) log_z, Tensor(d!) failed) -> Tensor");
  m.def("sum_log_probs(Tensor log_probs, int sequences, Tensor? starts) -> Tensor");
  m.def(
      "residual_draw(Tensor logits_p, Tensor logits_q, Tensor draft, Tensor keys, int forbidden_p, "
      "int forbidden_q, float temperature_p, float temperature_q) -> (Tensor, Tensor, Tensor)");
  m.def("reveal_steps(Tensor keys, int length, Tensor mask_probs) -> Tensor");
}
