// A CPU that runs CUDA kernels, for tests: what of <cuda_runtime.h> the sources in kernels/ use.
//
// Every CUDA thread is a coroutine. The lanes of a warp meet in shuffles, votes and __syncwarp; it is an error if they
// meet in different ones, or if one that is waited for has ended, either of which hangs a GPU or is undefined there.
// Blocks, and lanes between two meetings, run in an order drawn from `seed`, so that a result which depends on the
// order differs between seeds.
#pragma once

#include <math.h>
#include <setjmp.h>
#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <memory>
#include <numeric>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#define __host__
#define __device__
#define __global__
#define __forceinline__ inline
#define __launch_bounds__(...)
#define __grid_constant__
#define __shared__ static

struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
};
struct float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(16) double2 {
  double x, y;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};

using cudaStream_t = void*;
enum cudaError_t { cudaSuccess = 0, cudaErrorLaunchFailure = 719 };
struct cudaLaunchConfig_t {
  dim3 gridDim, blockDim;
  size_t dynamicSmemBytes = 0;
  cudaStream_t stream = nullptr;
};

namespace emulated {

constexpr unsigned kWarp = 32;
constexpr size_t kStackBytes = 64 << 10;

struct Warp {
  unsigned here = 0, mask = 0;
  int line = 0;
  uint64_t generation = 0;
  uint64_t given[kWarp], taken[kWarp];
};

struct Thread {
  unsigned number = 0;
  bool started = false, ended = false;
  ucontext_t context;
  jmp_buf state;
};

struct Machine {
  unsigned seed = 0;
  dim3 grid, block, block_index;
  dim3 thread_index;
  Thread* thread = nullptr;
  std::vector<Thread> threads;
  std::vector<Warp> warps;
  std::vector<std::unique_ptr<char[]>> stacks;
  std::function<void()> body;
  std::string failure, last_failure;
  uint64_t meetings = 0;  // how often something went on: none in a whole round is a deadlock
  unsigned at_barrier = 0;
  uint64_t barrier_generation = 0;
  ucontext_t context;
  jmp_buf state;
};

inline Machine machine;

inline void leave() {
  if (_setjmp(machine.thread->state) == 0) _longjmp(machine.state, 1);
}

[[noreturn]] inline void fail(const std::string& why) {
  machine.failure = why;
  for (;;) leave();
}

inline void enter_thread() {
  machine.body();
  machine.thread->ended = true;
  ++machine.meetings;
  leave();
}

inline void resume(Thread& thread) {
  machine.thread = &thread;
  machine.thread_index = dim3(thread.number, 0, 0);
  if (_setjmp(machine.state) != 0) return;
  if (thread.started) _longjmp(thread.state, 1);
  thread.started = true;
  getcontext(&thread.context);
  thread.context.uc_stack.ss_sp = machine.stacks[thread.number].get();
  thread.context.uc_stack.ss_size = kStackBytes;
  thread.context.uc_link = nullptr;
  makecontext(&thread.context, enter_thread, 0);
  swapcontext(&machine.context, &thread.context);
}

inline void run_block(std::mt19937& random) {
  const unsigned count = machine.block.x;
  machine.threads.assign(count, Thread{});
  machine.warps.assign((count + kWarp - 1) / kWarp, Warp{});
  machine.at_barrier = 0;
  while (machine.stacks.size() < count) machine.stacks.emplace_back(new char[kStackBytes]);
  std::vector<unsigned> order(count);
  std::iota(order.begin(), order.end(), 0u);
  if (machine.seed != 0) std::shuffle(order.begin(), order.end(), random);
  for (unsigned i = 0; i < count; ++i) machine.threads[i].number = i;
  for (unsigned alive = count; alive > 0;) {
    const uint64_t meetings = machine.meetings;
    alive = 0;
    for (unsigned number : order) {
      Thread& thread = machine.threads[number];
      if (thread.ended) continue;
      resume(thread);
      alive += !thread.ended;
      if (!machine.failure.empty()) return;
    }
    if (alive > 0 && machine.meetings == meetings) {
      machine.failure = "threads wait for others that never come";
      for (const Warp& warp : machine.warps)
        if (warp.here != 0) machine.failure += ", line " + std::to_string(warp.line);
      return;
    }
  }
}

inline cudaError_t run_grid(dim3 grid, dim3 block, std::function<void()> body) {
  const uint64_t num_blocks = uint64_t{grid.x} * grid.y * grid.z;
  if (num_blocks == 0 || block.x == 0 || block.x > 1024 || grid.y > 65535 || grid.z > 65535 || block.x % kWarp != 0) {
    machine.last_failure = "invalid configuration";
    return cudaErrorLaunchFailure;
  }
  machine.grid = grid;
  machine.block = block;
  machine.body = std::move(body);
  machine.failure.clear();
  std::mt19937 random(machine.seed);
  std::vector<uint64_t> order(num_blocks);
  std::iota(order.begin(), order.end(), uint64_t{0});
  if (machine.seed != 0) std::shuffle(order.begin(), order.end(), random);
  for (uint64_t number : order) {
    machine.block_index = dim3(static_cast<unsigned>(number % grid.x), static_cast<unsigned>(number / grid.x % grid.y),
                               static_cast<unsigned>(number / grid.x / grid.y));
    run_block(random);
    if (machine.failure.empty()) continue;
    machine.last_failure = machine.failure;
    return cudaErrorLaunchFailure;
  }
  return cudaSuccess;
}

// Waits until all lanes of the mask are here with a value each; returns all of them.
inline const uint64_t* meet(unsigned mask, uint64_t mine, int line) {
  Warp& warp = machine.warps[machine.thread->number / kWarp];
  const unsigned lane = machine.thread->number % kWarp;
  if (warp.here == 0) {
    warp.mask = mask;
    warp.line = line;
  }
  if (warp.mask != mask || warp.line != line || !(mask >> lane & 1))
    fail("lanes of a warp meet in lines " + std::to_string(warp.line) + " and " + std::to_string(line));
  warp.given[lane] = mine;
  warp.here |= 1u << lane;
  ++machine.meetings;
  const uint64_t generation = warp.generation;
  if (warp.here == mask) {
    std::copy(warp.given, warp.given + kWarp, warp.taken);
    warp.here = 0;
    ++warp.generation;
  }
  while (warp.generation == generation) leave();
  return warp.taken;
}

template <typename T>
uint64_t pack(T x) {
  static_assert(sizeof(T) <= sizeof(uint64_t));
  uint64_t bits = 0;
  std::memcpy(&bits, &x, sizeof(T));
  return bits;
}

template <typename T>
T unpack(uint64_t bits) {
  T x;
  std::memcpy(&x, &bits, sizeof(T));
  return x;
}

template <typename T>
T shuffle(unsigned mask, T x, int source, int line) {
  const uint64_t* all = meet(mask, pack(x), line);
  if (!(mask >> source & 1)) fail("a shuffle reads a lane outside its mask");
  return unpack<T>(all[source]);
}

inline int own_lane() { return static_cast<int>(machine.thread->number % kWarp); }

}  // namespace emulated

inline const dim3& threadIdx = emulated::machine.thread_index;
inline const dim3& blockIdx = emulated::machine.block_index;
inline const dim3& blockDim = emulated::machine.block;
inline const dim3& gridDim = emulated::machine.grid;

template <typename T>
T __shfl_sync(unsigned mask, T x, int source, int width = 32, int line = __builtin_LINE()) {
  const int lane = emulated::own_lane();
  return emulated::shuffle(mask, x, lane / width * width + source % width, line);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T x, int step, int line = __builtin_LINE()) {
  return emulated::shuffle(mask, x, emulated::own_lane() ^ step, line);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T x, unsigned step, int line = __builtin_LINE()) {
  const int lane = emulated::own_lane();
  return emulated::shuffle(mask, x, lane >= static_cast<int>(step) ? lane - static_cast<int>(step) : lane, line);
}
inline unsigned __match_any_sync(unsigned mask, int x, int line = __builtin_LINE()) {
  const uint64_t* all = emulated::meet(mask, emulated::pack(x), line);
  unsigned peers = 0;
  for (unsigned lane = 0; lane < emulated::kWarp; ++lane)
    if (mask >> lane & 1 && all[lane] == emulated::pack(x)) peers |= 1u << lane;
  return peers;
}
inline void __syncwarp(unsigned mask = 0xffffffffu, int line = __builtin_LINE()) { emulated::meet(mask, 0, line); }
inline void __syncthreads() {
  auto& machine = emulated::machine;
  ++machine.meetings;
  const uint64_t generation = machine.barrier_generation;
  if (++machine.at_barrier == machine.block.x) {
    machine.at_barrier = 0;
    ++machine.barrier_generation;
  }
  while (machine.barrier_generation == generation) emulated::leave();
}

template <typename T>
T atomicAdd(T* to, T x) {
  const T before = *to;
  *to = before + x;
  return before;
}
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline float __uint_as_float(unsigned x) { return emulated::unpack<float>(x); }
inline unsigned __float_as_uint(float x) { return static_cast<unsigned>(emulated::pack(x)); }
inline long long __double_as_longlong(double x) { return static_cast<long long>(emulated::pack(x)); }
inline double __hiloint2double(unsigned high, unsigned low) {
  return emulated::unpack<double>(uint64_t{high} << 32 | low);
}

inline cudaError_t cudaGetLastError() { return cudaSuccess; }
inline const char* cudaGetErrorString(cudaError_t) { return emulated::machine.last_failure.c_str(); }

template <typename... Parameters, typename... Arguments>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Parameters...),
                               Arguments&&... arguments) {
  return emulated::run_grid(config->gridDim, config->blockDim, [&] { kernel(arguments...); });
}
