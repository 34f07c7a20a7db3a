// The only header that knows the compiler and the language: what marks a function callable from
// host and device, and what lets the headers of the ops be read as C too.
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

// What a shared library shows.
#if defined(__GNUC__)
#define EDLM_API __attribute__((visibility("default")))
#else
#define EDLM_API
#endif

// The argument structs are one for C and C++. In C a member has no default: those that are named
// with one must be set.
#if defined(__cplusplus)
#define EDLM_C_BEGIN extern "C" {
#define EDLM_C_END }
#define EDLM_NOEXCEPT noexcept
#define EDLM_NODISCARD [[nodiscard]]
#define EDLM_DEFAULT(value) = value
#else
#define EDLM_C_BEGIN
#define EDLM_C_END
#define EDLM_NOEXCEPT
#define EDLM_NODISCARD
#define EDLM_DEFAULT(value)
#endif
