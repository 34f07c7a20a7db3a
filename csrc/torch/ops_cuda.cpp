// The ops on CUDA: on the tensors' device and torch's current stream, never waiting for either.
#include <torch/csrc/inductor/aoti_torch/c/shim.h>
#include <torch/csrc/stable/accelerator.h>

#include "tensors.h"

// Lives in libtorch_cuda. Weak, so that this library also loads into a torch built without CUDA,
// where no CUDA tensor can come to ask for it.
extern "C" __attribute__((weak)) AOTITorchError
aoti_torch_get_current_cuda_stream(int32_t device_index, void** stream);

namespace edlm::ring {
namespace {

void* current_stream(int32_t device) {
  void* stream = nullptr;
  require<Tensors>(aoti_torch_get_current_cuda_stream != nullptr &&
                       aoti_torch_get_current_cuda_stream(device, &stream) == AOTI_TORCH_SUCCESS,
                   "torch does not tell its CUDA stream of device ", device);
  return stream;
}

struct Cuda : Tensors {
  template <class Args>
  static void launch(Status (*op)(const Args&, void*), const Args& args, const Tensor& like) {
    const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
    check<Cuda>(op(args, current_stream(like.get_device_index())), {""});
  }

  template <class Args>
  static void launch(Status (*op)(const Args&, void*, void*), int64_t (*workspace)(const Args&),
                     const char* name, const Args& args, const Tensor& like) {
    const torch::stable::accelerator::DeviceGuard guard(like.get_device_index());
    // Freed on return, which is safe: the allocator hands it out again in stream order.
    const Tensor memory = empty(name, "workspace", like, {workspace(args)}, Type::kByte);
    check<Cuda>(op(args, memory.mutable_data_ptr(), current_stream(like.get_device_index())), {""});
  }

  static void run(const StreamKeysArgs& args, const Tensor& like) {
    launch(cuda::stream_keys, args, like);
  }
  static void run(const SampleCandidatesArgs& args, const Tensor& like) {
    launch(cuda::sample_candidates, cuda::sample_candidates_workspace, "sample_candidates", args,
           like);
  }
  static void run(const SampleWeightsArgs& args, const Tensor& like) {
    launch(cuda::sample_weights, cuda::sample_weights_workspace, "sample_weights", args, like);
  }
  static void run(const TokenLogProbsArgs& args, const Tensor& like) {
    launch(cuda::token_log_probs, cuda::token_log_probs_workspace, "token_log_probs", args, like);
  }
  static void run(const ResampleArgs& args, const Tensor& like) {
    launch(cuda::resample, args, like);
  }
  static void run(const PlaceCandidatesArgs& args, const Tensor& like) {
    launch(cuda::place_candidates, args, like);
  }
  static void run(const RevealChosenArgs& args, const Tensor& like) {
    launch(cuda::reveal_chosen, args, like);
  }
  static void run(const SumLogProbsArgs& args, const Tensor& like) {
    launch(cuda::sum_log_probs, args, like);
  }
  static void run(const ResidualDrawArgs& args, const Tensor& like) {
    launch(cuda::residual_draw, cuda::residual_draw_workspace, "residual_draw", args, like);
  }
  static void run(const RevealStepsArgs& args, const Tensor& like) {
    launch(cuda::reveal_steps, args, like);
  }
};

}  // namespace
}  // namespace edlm::ring

STABLE_TORCH_LIBRARY_IMPL(edlm, CUDA, m) { edlm::ring::register_ops<edlm::ring::Cuda>(m); }
