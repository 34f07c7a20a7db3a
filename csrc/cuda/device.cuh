// The words in which device code is written: indices, barriers, shuffles and the few intrinsics.
//
// Kernels use nothing of CUDA but these, so that the tests can run them as host code: there, simt.h
// holds a host twin of every name.
#pragma once

#if defined(__CUDACC__)

#include <cuda_runtime.h>

#include <cstdint>

#include "edlm/config.h"
#include "edlm/dtype.h"
#include "edlm/status.h"

namespace edlm::cuda {

inline constexpr int kLanes = 32;
#define EDLM_UNROLL(count) _Pragma(EDLM_QUOTED(unroll count))
#define EDLM_QUOTED(words) #words

struct alignas(16) Bytes16 {
  uint32_t word[4];
};

// A pointer that may point into shared memory. The emulation's records every access.
template <class T>
using SharedPtr = T*;

EDLM_DEVICE int thread_index() { return threadIdx.x; }
EDLM_DEVICE int lane() { return threadIdx.x % kLanes; }
EDLM_DEVICE int64_t block_index() { return blockIdx.x; }
EDLM_DEVICE int block_threads() { return blockDim.x; }

EDLM_DEVICE void sync_block() { __syncthreads(); }
EDLM_DEVICE void sync_warp() { __syncwarp(); }

EDLM_DEVICE SharedPtr<double> dynamic_shared() {
  extern __shared__ __align__(16) double edlm_shared[];
  return edlm_shared;
}

template <class T>
EDLM_DEVICE T shuffle(T value, int source) {
  return __shfl_sync(~0u, value, source);
}
template <class T>
EDLM_DEVICE T shuffle_xor(T value, int mask) {
  return __shfl_xor_sync(~0u, value, mask);
}
// The value `delta` lanes below; lanes without one keep their own.
template <class T>
EDLM_DEVICE T shuffle_up(T value, int delta) {
  return __shfl_up_sync(~0u, value, delta);
}
EDLM_DEVICE uint32_t ballot(bool vote) { return __ballot_sync(~0u, vote); }
EDLM_DEVICE int lowest_bit(uint32_t bits) { return __ffs(int(bits)) - 1; }
EDLM_DEVICE int highest_bit(uint32_t bits) { return 31 - __clz(int(bits)); }

// The largest of the warp's.
EDLM_DEVICE int32_t warp_max_int(int32_t value) { return __reduce_max_sync(~0u, value); }

// In halves: shared memory adds 32 bits at once, but loops for 64.
EDLM_DEVICE void atomic_add(SharedPtr<uint64_t> to, int i, uint64_t value) {
  uint32_t* const half = reinterpret_cast<uint32_t*>(to + i);
  const uint32_t low = uint32_t(value), before = atomicAdd(half, low);
  const uint32_t high = uint32_t(value >> 32) + (before + low < low);
  if (high) atomicAdd(half + 1, high);
}
EDLM_DEVICE void atomic_min(SharedPtr<uint32_t> to, int i, uint32_t value) {
  atomicMin(to + i, value);
}
EDLM_DEVICE void atomic_max(SharedPtr<uint32_t> to, int i, uint32_t value) {
  atomicMax(to + i, value);
}

// `from` must be a multiple of 16 and what it points to must not change while the kernel runs.
EDLM_DEVICE Bytes16 load16(const void* from) {
  const uint4 bytes = __ldg(static_cast<const uint4*>(from));
  return {{bytes.x, bytes.y, bytes.z, bytes.w}};
}
// The low word of high:low >> bits, bits < 32.
EDLM_DEVICE uint32_t funnel_right(uint32_t low, uint32_t high, int bits) {
  return __funnelshift_r(low, high, bits);
}
// 2^x to 2 ulp; results below 2^-126 are 0.
EDLM_DEVICE float exp2_approx(float x) {
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(x));
  return power;
}
EDLM_DEVICE float multiply_add(float a, float b, float c) { return __fmaf_rn(a, b, c); }
// 1 / x to 2 ulp, for positive x that are neither tiny nor huge.
EDLM_DEVICE double reciprocal(double x) {
  double y;
  asm("rcp.approx.ftz.f64 %0, %1;" : "=d"(y) : "d"(x));
  for (int i = 0; i < 2; ++i) y = y + y * (1.0 - x * y);
  return y;
}
EDLM_DEVICE float widen(float value) { return value; }
EDLM_DEVICE float widen(BFloat16 value) { return to_float(value); }
EDLM_DEVICE float widen(Float16 value) {
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(value.bits));
  return wide;
}
// Not from the C++ library: its minimum and maximum have no say on NaN. These ignore it.
EDLM_DEVICE float min_of(float a, float b) { return fminf(a, b); }
EDLM_DEVICE float max_of(float a, float b) { return fmaxf(a, b); }
// The latter on two 16-bit floats at once.
EDLM_DEVICE uint32_t max_of_pairs(uint32_t a, uint32_t b, BFloat16) {
  uint32_t max;
  asm("max.bf16x2 %0, %1, %2;" : "=r"(max) : "r"(a), "r"(b));
  return max;
}
EDLM_DEVICE uint32_t max_of_pairs(uint32_t a, uint32_t b, Float16) {
  uint32_t max;
  asm("max.f16x2 %0, %1, %2;" : "=r"(max) : "r"(a), "r"(b));
  return max;
}

// Bulk copies: one thread has the hardware bring bytes to shared memory, others wait at a barrier,
// 8 bytes of shared memory, for as many as it was told. The n-th use of a barrier has parity n % 2.
EDLM_DEVICE constexpr bool has_bulk_copies() {
#if __CUDA_ARCH__ >= 900
  return true;
#else
  return false;
#endif
}
EDLM_DEVICE uint32_t shared_address(SharedPtr<double> at) {
  return uint32_t(__cvta_generic_to_shared(at));
}
EDLM_DEVICE void bulk_start(SharedPtr<double> barrier) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], 1;" ::"r"(shared_address(barrier)) : "memory");
}
// After bulk_start(), before the first copy.
EDLM_DEVICE void bulk_started() {
#if __CUDA_ARCH__ >= 900
  asm volatile("fence.proxy.async.shared::cta;" ::: "memory");
#endif
}
// Addresses and `bytes` are multiples of 16.
EDLM_DEVICE void bulk_copy(SharedPtr<double> to, const void* from, int bytes,
                           SharedPtr<double> barrier) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
  asm volatile(
      "cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::
          "r"(shared_address(to)),
      "l"(__cvta_generic_to_global(from)), "r"(bytes), "r"(shared_address(barrier))
      : "memory");
#endif
}
EDLM_DEVICE void bulk_wait(SharedPtr<double> barrier, int parity) {
#if __CUDA_ARCH__ >= 900
  asm volatile(
      "{\n"
      ".reg .pred arrived;\n"
      "again:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 arrived, [%0], %1;\n"
      "@!arrived bra again;\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
#endif
}
// The i-th 16 bytes of what a copy brought.
EDLM_DEVICE Bytes16 load16_shared(SharedPtr<double> from, int i) {
  return reinterpret_cast<const Bytes16*>(from)[i];
}

// For kernels that launch_dependent() starts early. Else both return at once.
EDLM_DEVICE void let_next_kernel_start() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}
EDLM_DEVICE void wait_for_previous_kernel() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

inline int multiprocessors() {
  int device = 0, count = 0;
  cudaGetDevice(&device);
  cudaDeviceGetAttribute(&count, cudaDevAttrMultiProcessorCount, device);
  return count > 0 ? count : 1;
}

template <class... Params, class... Args>
Status launch_with(cudaLaunchAttribute* attributes, unsigned count, void (*kernel)(Params...),
                   int64_t blocks, int threads, int64_t shared_bytes, void* stream,
                   const Args&... args) {
  if (blocks == 0) return {};
  if (blocks > INT32_MAX) return {Code::kDevice, cudaErrorInvalidConfiguration};
  if (shared_bytes > 48 * 1024) {
    const cudaError_t error = cudaFuncSetAttribute(
        kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, int(shared_bytes));
    if (error != cudaSuccess) return {Code::kDevice, error};
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = dim3(unsigned(blocks));
  config.blockDim = dim3(threads);
  config.dynamicSmemBytes = shared_bytes;
  config.stream = static_cast<cudaStream_t>(stream);
  config.attrs = attributes;
  config.numAttrs = count;
  const cudaError_t error = cudaLaunchKernelEx(&config, kernel, args...);
  return error == cudaSuccess ? Status{} : Status{Code::kDevice, error};
}

template <class... Params, class... Args>
Status launch(void (*kernel)(Params...), int64_t blocks, int threads, int64_t shared_bytes,
              void* stream, const Args&... args) {
  return launch_with(nullptr, 0, kernel, blocks, threads, shared_bytes, stream, args...);
}

// May start before the kernel launched before it on the stream has ended: wait_for_previous_kernel
// stands before the first read of what that one wrote.
template <class... Params, class... Args>
Status launch_dependent(void (*kernel)(Params...), int64_t blocks, int threads,
                        int64_t shared_bytes, void* stream, const Args&... args) {
  cudaLaunchAttribute attribute = {};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  return launch_with(&attribute, 1, kernel, blocks, threads, shared_bytes, stream, args...);
}

}  // namespace edlm::cuda

#else
#include "simt.h"
#endif
