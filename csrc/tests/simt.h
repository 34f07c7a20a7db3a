// A small SIMT machine for tests: runs the device code of csrc/cuda as host code.
//
// The threads of a block are fibres of one thread, a block runs after another. Every barrier and
// shuffle waits for all the threads that CUDA waits for; threads that wait for ones that never come
// are a fault. Accesses through SharedPtr are recorded: two threads that touch one element, one of
// them writing, with no barrier between them, are a fault, and so is the reading of shared memory
// that nobody wrote. Faults are collected, not thrown.
//
// Here are the host twins of all the names in csrc/cuda/device.cuh.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <functional>
#include <string>
#include <vector>

#include "edlm/config.h"
#include "edlm/dtype.h"
#include "edlm/status.h"

namespace simt {

std::vector<std::string>& faults();

int64_t block();
int thread();
int threads();
void* shared();

void sync_block();
void sync_warp();

// What a thread brings to a warp-wide operation of this name, and the 32 that came together.
struct Words {
  uint64_t word[32];
};
const Words& exchange(const char* operation, uint64_t mine);

// What the device says it has; for tests to set.
int& multiprocessors();

// Whether kernels run as if the one before them had not ended: then a thread must wait before it
// touches what is recorded.
bool& start_early();
void wait_for_previous_kernel();

// Copies that are under way until a thread waits for them; shared memory holds garbage meanwhile.
void bulk_start(const void* barrier);
void bulk_copy(void* to, const void* from, int bytes, const void* barrier);
void bulk_wait(const void* barrier, int parity);

// Calls of load16, to count reads by.
int64_t& wide_loads();

enum class Kind { kRead, kWrite, kAtomic };
void record(const void* address, Kind kind);

void run(int64_t blocks, int threads, int64_t shared_bytes, const std::function<void()>& kernel);

}  // namespace simt

namespace edlm::cuda {

inline constexpr int kLanes = 32;
#define EDLM_UNROLL(count)

struct alignas(16) Bytes16 {
  uint32_t word[4];
};

template <class T>
class SharedPtr {
 public:
  class Element {
   public:
    explicit Element(T* at) : at_(at) {}
    operator T() const {
      simt::record(at_, simt::Kind::kRead);
      return *at_;
    }
    Element& operator=(T value) {
      simt::record(at_, simt::Kind::kWrite);
      *at_ = value;
      return *this;
    }

   private:
    T* at_;
  };

  SharedPtr() = default;
  explicit SharedPtr(T* at) : at_(at) {}
  template <class U>
  explicit SharedPtr(SharedPtr<U> other) : at_(reinterpret_cast<T*>(other.get())) {}

  T* get() const { return at_; }
  explicit operator bool() const { return at_ != nullptr; }
  SharedPtr operator+(int64_t offset) const { return SharedPtr(at_ + offset); }
  Element operator[](int64_t index) const { return Element(at_ + index); }

 private:
  T* at_ = nullptr;
};

inline int thread_index() { return simt::thread(); }
inline int lane() { return simt::thread() % kLanes; }
inline int64_t block_index() { return simt::block(); }
inline int block_threads() { return simt::threads(); }

inline void sync_block() { simt::sync_block(); }
inline void sync_warp() { simt::sync_warp(); }

inline SharedPtr<double> dynamic_shared() {
  return SharedPtr<double>(static_cast<double*>(simt::shared()));
}

template <class T>
T from_lane(const char* operation, T value, int source) {
  uint64_t word = 0;
  memcpy(&word, &value, sizeof value);
  word = simt::exchange(operation, word).word[source];
  memcpy(&value, &word, sizeof value);
  return value;
}
template <class T>
T shuffle(T value, int source) {
  return from_lane("shuffle", value, source % kLanes);
}
template <class T>
T shuffle_xor(T value, int mask) {
  return from_lane("shuffle_xor", value, lane() ^ mask);
}
template <class T>
T shuffle_up(T value, int delta) {
  return from_lane("shuffle_up", value, lane() < delta ? lane() : lane() - delta);
}
inline uint32_t ballot(bool vote) {
  const simt::Words& votes = simt::exchange("ballot", vote);
  uint32_t bits = 0;
  for (int i = 0; i < kLanes; ++i) bits |= uint32_t(votes.word[i]) << i;
  return bits;
}
inline int32_t warp_max_int(int32_t value) {
  const simt::Words& all = simt::exchange("warp_max_int", uint32_t(value));
  for (int i = 0; i < kLanes; ++i) value = std::max(value, int32_t(uint32_t(all.word[i])));
  return value;
}
inline void atomic_add(SharedPtr<uint64_t> to, int i, uint64_t value) {
  simt::record(to.get() + i, simt::Kind::kAtomic);
  to.get()[i] += value;
}
inline void atomic_min(SharedPtr<uint32_t> to, int i, uint32_t value) {
  simt::record(to.get() + i, simt::Kind::kAtomic);
  to.get()[i] = std::min(to.get()[i], value);
}
inline void atomic_max(SharedPtr<uint32_t> to, int i, uint32_t value) {
  simt::record(to.get() + i, simt::Kind::kAtomic);
  to.get()[i] = std::max(to.get()[i], value);
}
inline int lowest_bit(uint32_t bits) { return __builtin_ctz(bits); }
inline int highest_bit(uint32_t bits) { return 31 - __builtin_clz(bits); }

inline Bytes16 load16(const void* from) {
  if (reinterpret_cast<uintptr_t>(from) % 16) simt::faults().push_back("load16 is not aligned");
  ++simt::wide_loads();
  Bytes16 bytes;
  memcpy(&bytes, from, sizeof bytes);
  return bytes;
}
inline uint32_t funnel_right(uint32_t low, uint32_t high, int bits) {
  return uint32_t((uint64_t{high} << 32 | low) >> bits);
}
inline float exp2_approx(float x) { return x < -126 ? 0.0f : std::exp2(x); }
inline float multiply_add(float a, float b, float c) { return std::fma(a, b, c); }
inline double reciprocal(double x) { return 1.0 / x; }
template <class T>
float widen(T value) {
  return to_float(value);
}
inline float min_of(float a, float b) { return std::fmin(a, b); }
inline float max_of(float a, float b) { return std::fmax(a, b); }
template <class Half>
uint32_t max_of_pairs(uint32_t a, uint32_t b, Half) {
  const auto larger = [](uint32_t x, uint32_t y) {
    const float value = to_float(Half{uint16_t(x)});
    return value != value || value < to_float(Half{uint16_t(y)}) ? y : x;
  };
  return larger(a & 0xffff, b & 0xffff) | larger(a >> 16, b >> 16) << 16;
}

constexpr bool has_bulk_copies() { return true; }
inline void bulk_start(SharedPtr<double> barrier) { simt::bulk_start(barrier.get()); }
inline void bulk_started() {}
inline void bulk_copy(SharedPtr<double> to, const void* from, int bytes,
                      SharedPtr<double> barrier) {
  simt::bulk_copy(to.get(), from, bytes, barrier.get());
}
inline void bulk_wait(SharedPtr<double> barrier, int parity) {
  simt::bulk_wait(barrier.get(), parity);
}
inline Bytes16 load16_shared(SharedPtr<double> from, int i) {
  Bytes16 bytes;
  memcpy(&bytes, reinterpret_cast<const Bytes16*>(from.get()) + i, sizeof bytes);
  return bytes;
}

inline void let_next_kernel_start() {}
inline void wait_for_previous_kernel() { simt::wait_for_previous_kernel(); }
inline int multiprocessors() { return simt::multiprocessors(); }

template <class... Params, class... Args>
Status launch(void (*kernel)(Params...), int64_t blocks, int threads, int64_t shared_bytes, void*,
              const Args&... args) {
  simt::run(blocks, threads, shared_bytes, [&] { kernel(args...); });
  return {};
}

template <class... Params, class... Args>
Status launch_dependent(void (*kernel)(Params...), int64_t blocks, int threads,
                        int64_t shared_bytes, void* stream, const Args&... args) {
  simt::start_early() = true;
  const Status status = launch(kernel, blocks, threads, shared_bytes, stream, args...);
  simt::start_early() = false;
  return status;
}

}  // namespace edlm::cuda
