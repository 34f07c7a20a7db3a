// The only header that knows the compiler: what marks a function callable from host and device.
#pragma once

#if defined(__CUDACC__)
#define EDLM_HD __host__ __device__ __forceinline__
#define EDLM_DEVICE __device__ __forceinline__
#define EDLM_KERNEL(...) __global__ __launch_bounds__(__VA_ARGS__) void
#else
// Always inlined: a file compiled for AVX-512 must not leave behind a shared copy of a function
// that the linker could hand to code meant for every processor.
#define EDLM_HD inline __attribute__((always_inline))
// Device code as host code, for the SIMT emulation of the tests.
#define EDLM_DEVICE inline
#define EDLM_KERNEL(...) void
#endif
