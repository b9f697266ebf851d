// Fibers that take turns. Switched by _setjmp and _longjmp, since swapcontext asks the kernel for the signal mask every
// time and sums take tens of thousands of switches.
#include <ucontext.h>

#include <algorithm>
#include <csetjmp>
#include <memory>
#include <numeric>
#include <random>
#include <string>
#include <utility>
#include <vector>

#include "cuda_runtime.h"

dim3 threadIdx, blockIdx, blockDim;

namespace gpu_on_host {
namespace {

constexpr unsigned kLanes = 32, kMostThreads = 1024;
constexpr std::size_t kStack = 64 << 10;

struct Thread {
  std::unique_ptr<char[]> stack;
  ucontext_t start;
  jmp_buf here;
  bool started = false;
  const char* waits_at = nullptr;
};

struct Warp {
  std::uint64_t brought[2][kLanes];  // in turn, so that nobody overwrites what another has yet to read
  int turn = 0;
  unsigned came = 0;
  const char* what = nullptr;
};

std::vector<Thread> threads(kMostThreads);
std::vector<Warp> warps;
std::vector<unsigned> ready;
unsigned met, ended;
jmp_buf scheduler;
const std::function<void()>* kernel;
std::minstd_rand order;
std::int64_t launch_count = 0;
std::string trouble;

void leave() {
  if (_setjmp(threads[threadIdx.x].here) == 0) _longjmp(scheduler, 1);
}

// A fiber is used again for the threads of later blocks.
void live() {
  for (;;) {
    (*kernel)();
    ++ended;
    leave();
  }
}

void resume(unsigned index) {
  Thread& thread = threads[index];
  threadIdx = index;
  if (_setjmp(scheduler) != 0) return;
  if (thread.started) _longjmp(thread.here, 1);
  thread.started = true;
  if (!thread.stack) thread.stack = std::make_unique<char[]>(kStack);
  getcontext(&thread.start);
  thread.start.uc_stack.ss_sp = thread.stack.get();
  thread.start.uc_stack.ss_size = kStack;
  makecontext(&thread.start, live, 0);
  setcontext(&thread.start);
}

void wait(const char* what) {
  Thread& thread = threads[threadIdx.x];
  thread.waits_at = what;
  leave();
  thread.waits_at = nullptr;
}

// The threads from `first` on that waited for this one go on, and so does this one.
void release(unsigned first, unsigned count) {
  for (unsigned i = first; i < first + count; ++i)
    if (i != threadIdx.x) ready.push_back(i);
}

cudaError_t run_block(unsigned count) {
  warps.assign((count + kLanes - 1) / kLanes, {});
  met = ended = 0;
  ready.resize(count);
  std::iota(ready.begin(), ready.end(), 0u);
  while (!ready.empty()) {
    std::swap(ready[order() % ready.size()], ready.back());
    const unsigned next = ready.back();
    ready.pop_back();
    resume(next);
  }
  if (ended == count) return cudaSuccess;
  for (unsigned i = count; i-- > 0;)
    if (const char* const what = std::exchange(threads[i].waits_at, nullptr)) {
      threads[i].started = false;  // its stack is lost
      trouble = "thread " + std::to_string(i) + " of block " + std::to_string(blockIdx.x) + " waits at " + what +
                ", where not all of them come";
    }
  return cudaErrorLaunchFailure;
}

}  // namespace

cudaError_t run(unsigned blocks, unsigned count, const std::function<void()>& body) {
  ++launch_count;
  trouble = std::to_string(blocks) + " blocks of " + std::to_string(count) + " threads: at least one, at most " +
            std::to_string(kMostThreads) + " threads";
  if (blocks == 0 || count == 0 || count > kMostThreads) return cudaErrorInvalidConfiguration;
  kernel = &body;
  blockDim = count;
  std::vector<unsigned> turns(blocks);
  std::iota(turns.begin(), turns.end(), 0u);
  std::shuffle(turns.begin(), turns.end(), order);
  for (const unsigned block : turns) {
    blockIdx = block;
    if (const cudaError_t error = run_block(count)) return error;
  }
  return cudaSuccess;
}

void meet_block(const char* what) {
  if (++met < blockDim.x) return wait(what);
  met = 0;
  release(0, blockDim.x);
}

const std::uint64_t* meet_warp(const char* what, unsigned mask, std::uint64_t mine) {
  Warp& warp = warps[threadIdx.x / kLanes];
  std::uint64_t* const all = warp.brought[warp.turn];
  all[threadIdx.x % kLanes] = mine;
  if (mask != 0xffffffff || (warp.came > 0 && std::strcmp(warp.what, what) != 0)) wait(what);  // for ever
  warp.what = what;
  if (++warp.came < kLanes) {
    wait(what);
  } else {
    warp.came = 0;
    warp.turn ^= 1;
    release(threadIdx.x / kLanes * kLanes, kLanes);
  }
  return all;
}

void draw_order(std::uint64_t seed) { order.seed(static_cast<unsigned>(seed)); }
std::int64_t launches() { return launch_count; }

}  // namespace gpu_on_host

const char* cudaGetErrorString(cudaError_t) { return gpu_on_host::trouble.c_str(); }
