// The SIMT machine: fibres, barriers, and the record of accesses.
#include "simt.h"

#include <ucontext.h>

#include <algorithm>
#include <deque>
#include <memory>
#include <unordered_map>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/common_interface_defs.h>
#endif

namespace simt {
namespace {

constexpr int kWarp = 32;
constexpr size_t kStack = 128 * 1024;

struct Fibre {
  ucontext_t context;
  std::unique_ptr<char[]> stack = std::make_unique<char[]>(kStack);
  void* fake_stack = nullptr;  // AddressSanitizer's
  bool live = false;
};

// Threads that have come to a barrier, or to a warp-wide operation.
struct Meeting {
  std::vector<int> waiting;
  const char* operation = nullptr;
  int64_t epoch = 0;
};

struct Access {
  int64_t block, block_epoch, warp_epoch;
  int thread;
};

struct Record {
  bool written = false;
  Access write;
  std::vector<Access> reads, atomics;
};

// A bulk copy that nobody has waited for yet, and how many a barrier has seen the end of.
struct Copy {
  void* to = nullptr;
  const void* from = nullptr;
  int bytes = 0, ended = 0;
};

struct Machine {
  int64_t block = 0;
  int thread = 0, threads = 0;
  std::unique_ptr<double[]> shared;
  int64_t shared_bytes = 0;

  std::vector<std::unique_ptr<Fibre>> fibres;
  std::deque<int> ready;
  ucontext_t scheduler;
  const void* scheduler_stack = nullptr;
  size_t scheduler_stack_size = 0;
  const std::function<void()>* kernel = nullptr;

  Meeting barrier;
  std::vector<Meeting> warps;
  std::vector<int64_t> warp_epochs;  // of sync_warp; a shuffle orders no memory
  std::vector<Words> words;          // two per warp, so that none is overwritten before all read it

  // By address; those of shared memory are a block's own.
  std::unordered_map<const void*, Record> shared_records, global_records;
  std::unordered_map<const void*, Copy> copies;  // by barrier
  std::vector<std::string> faults;
  int64_t wide_loads = 0;
  int multiprocessors = 1;
  bool start_early = false;
  std::vector<bool> waited;  // by thread, where kernels start early
};

Machine machine;

void fault(const std::string& what) {
  if (machine.faults.size() < 20) machine.faults.push_back(what);
}

std::string here() {
  return "block " + std::to_string(machine.block) + " thread " + std::to_string(machine.thread);
}

// AddressSanitizer must be told which stack is in use.
void start_switch([[maybe_unused]] void** save, [[maybe_unused]] const void* stack,
                  [[maybe_unused]] size_t size) {
#if defined(__SANITIZE_ADDRESS__)
  __sanitizer_start_switch_fiber(save, stack, size);
#endif
}
void finish_switch([[maybe_unused]] void* saved) {
#if defined(__SANITIZE_ADDRESS__)
  const void* from;
  size_t size;
  __sanitizer_finish_switch_fiber(saved, &from, &size);
  if (from && !machine.scheduler_stack) {
    machine.scheduler_stack = from;
    machine.scheduler_stack_size = size;
  }
#endif
}

void to_scheduler() {
  Fibre& fibre = *machine.fibres[machine.thread];
  start_switch(fibre.live ? &fibre.fake_stack : nullptr, machine.scheduler_stack,
               machine.scheduler_stack_size);
  swapcontext(&fibre.context, &machine.scheduler);
  finish_switch(fibre.fake_stack);
}

void to_fibre(int thread) {
  Fibre& fibre = *machine.fibres[thread];
  machine.thread = thread;
  void* fake_stack = nullptr;
  start_switch(&fake_stack, fibre.stack.get(), kStack);
  swapcontext(&machine.scheduler, &fibre.context);
  finish_switch(fake_stack);
}

void fibre_main() {
  finish_switch(nullptr);
  (*machine.kernel)();
  machine.fibres[machine.thread]->live = false;
  to_scheduler();
}

// Waits until `wanted` threads have come to the meeting for the same operation.
void meet(Meeting& meeting, const char* operation, size_t wanted) {
  if (meeting.waiting.empty()) meeting.operation = operation;
  if (meeting.operation != operation) {
    fault(here() + " is at a " + operation + ", others of its warp at a " + meeting.operation);
  }
  meeting.waiting.push_back(machine.thread);
  if (meeting.waiting.size() == wanted) {
    for (const int thread : meeting.waiting) machine.ready.push_back(thread);
    meeting.waiting.clear();
    ++meeting.epoch;
  }
  to_scheduler();
}

void run_block() {
  const int warps = (machine.threads + kWarp - 1) / kWarp;
  machine.barrier = {};
  machine.warps.assign(warps, {});
  machine.warp_epochs.assign(warps, 0);
  machine.words.resize(2 * warps);
  machine.waited.assign(machine.threads, false);
  memset(machine.shared.get(), 0xff, machine.shared_bytes);
  machine.shared_records.clear();
  machine.copies.clear();
  machine.ready.clear();
  while (int(machine.fibres.size()) < machine.threads) {
    machine.fibres.push_back(std::make_unique<Fibre>());
  }
  for (int t = 0; t < machine.threads; ++t) {
    Fibre& fibre = *machine.fibres[t];
    getcontext(&fibre.context);
    fibre.context.uc_stack = {fibre.stack.get(), 0, kStack};
    fibre.context.uc_link = nullptr;
    fibre.fake_stack = nullptr;
    fibre.live = true;
    makecontext(&fibre.context, fibre_main, 0);
    machine.ready.push_back(t);
  }
  while (!machine.ready.empty()) {
    const int next = machine.ready.front();
    machine.ready.pop_front();
    to_fibre(next);
  }
  for (int t = 0; t < machine.threads; ++t) {
    machine.thread = t;
    if (!machine.fibres[t]->live) continue;
    fault(here() + " waits for threads that never come");
    break;
  }
}

bool ordered(const Access& before, const Access& now) {
  if (before.block != now.block) return false;
  return before.thread == now.thread || before.block_epoch < now.block_epoch ||
         (before.thread / kWarp == now.thread / kWarp && before.warp_epoch < now.warp_epoch);
}

}  // namespace

std::vector<std::string>& faults() { return machine.faults; }
void bulk_start(const void* barrier) { machine.copies[barrier] = {}; }

void bulk_copy(void* to, const void* from, int bytes, const void* barrier) {
  const auto aligned = [](const void* at) { return reinterpret_cast<uintptr_t>(at) % 16 == 0; };
  const char* const end =
      reinterpret_cast<const char*>(machine.shared.get()) + machine.shared_bytes;
  if (!aligned(to) || !aligned(from) || bytes % 16) fault(here() + " copies what is not aligned");
  if (static_cast<char*>(to) + bytes > end) fault(here() + " copies beyond shared memory");
  if (!machine.copies.count(barrier)) fault(here() + " copies without a barrier");
  Copy& copy = machine.copies[barrier];
  if (copy.to) fault(here() + " starts a copy before the last has ended");
  memset(to, 0xff, bytes);
  copy = {to, from, bytes, copy.ended};
}

void bulk_wait(const void* barrier, int parity) {
  Copy& copy = machine.copies[barrier];
  if (copy.to) {
    memcpy(copy.to, copy.from, copy.bytes);
    copy = {nullptr, nullptr, 0, copy.ended + 1};
  }
  if (copy.ended % 2 == parity) fault(here() + " waits for a copy that never comes");
}

bool& start_early() { return machine.start_early; }
void wait_for_previous_kernel() { machine.waited[machine.thread] = true; }
int& multiprocessors() { return machine.multiprocessors; }
int64_t& wide_loads() { return machine.wide_loads; }
int64_t block() { return machine.block; }
int thread() { return machine.thread; }
int threads() { return machine.threads; }
void* shared() { return machine.shared.get(); }

void sync_block() { meet(machine.barrier, "sync_block", machine.threads); }

void sync_warp() {
  const int warp = machine.thread / kWarp;
  meet(machine.warps[warp], "sync_warp", kWarp);
  machine.warp_epochs[warp] = machine.warps[warp].epoch;
}

const Words& exchange(const char* operation, uint64_t mine) {
  const int warp = machine.thread / kWarp;
  Meeting& meeting = machine.warps[warp];
  Words& words = machine.words[2 * warp + meeting.epoch % 2];
  words.word[machine.thread % kWarp] = mine;
  meet(meeting, operation, kWarp);
  return words;
}

void record(const void* address, Kind kind) {
  const char* const at = static_cast<const char*>(address);
  const char* const shared = reinterpret_cast<const char*>(machine.shared.get());
  const bool is_shared = at >= shared && at < shared + machine.shared_bytes;
  const Access now = {machine.block, machine.barrier.epoch,
                      machine.warp_epochs[machine.thread / kWarp], machine.thread};
  Record& record = (is_shared ? machine.shared_records : machine.global_records)[address];
  if (machine.start_early && !is_shared && !machine.waited[machine.thread]) {
    fault(here() + " touches memory before the previous kernel has ended");
  }
  if (is_shared && kind != Kind::kWrite && !record.written) {
    fault("uninitialised: " + here() + " reads shared memory that nobody wrote");
  }
  const auto expect_ordered = [&](const Access& before) {
    if (ordered(before, now)) return;
    fault("race: unsynchronised accesses to one element, the second by " + here());
  };
  // One access of each thread is enough, and none from before a barrier that all passed.
  const auto add = [&](std::vector<Access>& accesses) {
    std::erase_if(accesses, [&](const Access& access) {
      return access.thread == now.thread || ordered(access, now);
    });
    accesses.push_back(now);
  };
  if (record.written) expect_ordered(record.write);
  if (kind != Kind::kAtomic) {
    for (const Access& atomic : record.atomics) expect_ordered(atomic);
  }
  if (kind != Kind::kRead) {
    for (const Access& read : record.reads) expect_ordered(read);
  }
  if (kind == Kind::kWrite) {
    record = {true, now, {}, {}};
  } else {
    add(kind == Kind::kRead ? record.reads : record.atomics);
  }
}

void run(int64_t blocks, int threads, int64_t shared_bytes, const std::function<void()>& kernel) {
  machine.threads = threads;
  machine.shared = std::make_unique<double[]>((shared_bytes + 7) / 8);
  machine.shared_bytes = shared_bytes;
  machine.kernel = &kernel;
  machine.global_records.clear();
  for (machine.block = 0; machine.block < blocks; ++machine.block) run_block();
}

}  // namespace simt
