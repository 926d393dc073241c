// Executes unchanged CUDA C++ on the CPU, so that kernels are tested where there is no GPU.
//
// Every CUDA thread is a fiber with a stack of its own. One fiber runs at a time, until it reaches
// a barrier, a warp collective, an atomic or a spin load; then a seeded generator picks the next
// one. So a missing barrier gives wrong numbers for most seeds, and what waits for ever is an error
// that says which threads wait at which line. Blocks run one after another in random order; a
// cooperative launch keeps all of them alive.
//
// Memory is as unkind as on a GPU: shared memory starts as NaN, and asynchronous copies land only
// when they are waited for. Dynamic shared memory is one allocation of exactly the requested size,
// so AddressSanitizer sees every access outside it; static shared arrays are checked by
// -fsanitize=bounds.
//
// What this cannot show: the memory model between unsynchronised threads, code that counts on the
// lockstep of a warp, tensor cores, and speed.
#pragma once

#define GENSSL_CUDA_ON_CPU 1

#include "kernels/common/cuda_on_cpu_grid.h"

#define __global__
#define __device__
#define __host__
#define __constant__ static
#define __shared__ static thread_local
#define __forceinline__ inline
#define __noinline__ __attribute__((noinline))
#define __align__(bytes) alignas(bytes)
#define __launch_bounds__(...)
#define __grid_constant__

struct alignas(8) float2 {
  float x, y;
};
struct alignas(16) float4 {
  float x, y, z, w;
};
struct alignas(8) int2 {
  int x, y;
};
struct alignas(16) int4 {
  int x, y, z, w;
};
struct alignas(16) uint4 {
  unsigned x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }
inline int2 make_int2(int x, int y) { return {x, y}; }
inline int4 make_int4(int x, int y, int z, int w) { return {x, y, z, w}; }
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) { return {x, y, z, w}; }

namespace genssl::cuda_on_cpu {

// Runs `kernel` over the grid; arguments are converted to the parameters as a launch does.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
            bool cooperative, Arguments&&... arguments) {
  if (block.x * block.y * block.z > kMaxThreadsPerBlock || block.x * block.y * block.z == 0 ||
      grid.x * grid.y * grid.z == 0 || shared_bytes > settings.max_shared_bytes) {
    std::ostringstream text;
    text << "invalid launch: " << grid.x << "x" << grid.y << "x" << grid.z << " blocks of "
         << block.x << "x" << block.y << "x" << block.z << " threads with " << shared_bytes
         << " bytes of shared memory";
    throw std::runtime_error(text.str());
  }
  std::tuple<Parameters...> copies(std::forward<Arguments>(arguments)...);
  Grid([=] { std::apply(kernel, copies); }, grid, block, shared_bytes, cooperative).run();
}

inline void* dynamic_shared() { return current_fiber->block->dynamic_shared.get(); }

// Waits until every live lane of `mask` has come here with its value; all values are then in
// gathered.
inline const Fiber& warp_exchange(uint32_t mask, int64_t value, Site site) {
  Fiber* fiber = current_fiber;
  if (!(mask >> fiber->lane() & 1)) {
    std::ostringstream text;
    text << site.operation << " (" << site.file << ":" << site.line << "): lane " << fiber->lane()
         << " is not in its own mask " << std::hex << mask;
    throw std::runtime_error(text.str());
  }
  fiber->mask = mask;
  fiber->contribution = value;
  current_grid->wait(State::at_warp_barrier, site);
  return *fiber;
}

template <typename T>
T shuffle(uint32_t mask, T value, int source_lane, Site site) {
  static_assert(sizeof(T) <= sizeof(int64_t) && std::is_trivially_copyable_v<T>);
  int64_t bits = 0;
  memcpy(&bits, &value, sizeof value);
  bits = warp_exchange(mask, bits, site).gathered[source_lane];
  memcpy(&value, &bits, sizeof value);
  return value;
}

// The lane that a shuffle within segments of `width` reads: its own where the source is outside.
inline int segment_lane(int source, int width) {
  const int lane = current_fiber->lane(), first = lane / width * width;
  return source >= first && source < first + width ? source : lane;
}

inline uint32_t ballot(uint32_t mask, bool predicate, Site site) {
  const Fiber& fiber = warp_exchange(mask, predicate, site);
  uint32_t votes = 0;
  for (int lane = 0; lane < kWarpSize; ++lane) {
    if (fiber.mask >> lane & 1) votes |= static_cast<uint32_t>(fiber.gathered[lane]) << lane;
  }
  return votes;
}

inline const Fiber& block_barrier(bool predicate, Site site) {
  current_fiber->contribution = predicate;
  current_grid->wait(State::at_block_barrier, site);
  return *current_fiber;
}

template <typename T, typename Change>
T atomic(T* address, Site site, Change change) {
  current_grid->yield(site);
  const T old = *address;
  *address = change(old);
  return old;
}

inline void async_copy(void* to, const void* from, size_t bytes) {
  current_fiber->copies.back().push_back({to, from, bytes});
}
inline void async_commit() { current_fiber->copies.emplace_back(); }
// Performs all groups but the latest `pending`; the open group is not counted.
inline void async_wait(int pending) {
  auto& copies = current_fiber->copies;
  while (static_cast<int>(copies.size()) - 1 > pending) {
    for (const AsyncCopy& copy : copies.front()) memcpy(copy.to, copy.from, copy.bytes);
    copies.erase(copies.begin());
  }
}

}  // namespace genssl::cuda_on_cpu

#define threadIdx (::genssl::cuda_on_cpu::current_fiber->thread)
#define blockIdx (::genssl::cuda_on_cpu::current_fiber->block->index)
#define blockDim (::genssl::cuda_on_cpu::current_block_shape)
#define gridDim (::genssl::cuda_on_cpu::current_grid_shape)
constexpr int warpSize = genssl::cuda_on_cpu::kWarpSize;

// The call site travels in defaulted arguments, so that the names stay functions.
#define GENSSL_SITE_PARAMETERS const char *file = __builtin_FILE(), int line = __builtin_LINE()
#define GENSSL_SITE \
  ::genssl::cuda_on_cpu::Site { __func__, file, line }

inline void __syncthreads(GENSSL_SITE_PARAMETERS) {
  genssl::cuda_on_cpu::block_barrier(false, GENSSL_SITE);
}
inline int __syncthreads_count(int predicate, GENSSL_SITE_PARAMETERS) {
  return static_cast<int>(
      genssl::cuda_on_cpu::block_barrier(predicate != 0, GENSSL_SITE).block_result[0]);
}
inline int __syncthreads_and(int predicate, GENSSL_SITE_PARAMETERS) {
  return static_cast<int>(
      genssl::cuda_on_cpu::block_barrier(predicate != 0, GENSSL_SITE).block_result[1]);
}
inline int __syncthreads_or(int predicate, GENSSL_SITE_PARAMETERS) {
  return static_cast<int>(
      genssl::cuda_on_cpu::block_barrier(predicate != 0, GENSSL_SITE).block_result[2]);
}
inline void __syncwarp(unsigned mask = 0xffffffffu, GENSSL_SITE_PARAMETERS) {
  genssl::cuda_on_cpu::warp_exchange(mask, 0, GENSSL_SITE);
}

template <typename T>
T __shfl_sync(unsigned mask, T value, int source, int width = 32, GENSSL_SITE_PARAMETERS) {
  const int first = genssl::cuda_on_cpu::current_fiber->lane() / width * width;
  return genssl::cuda_on_cpu::shuffle(mask, value, first + (source & (width - 1)), GENSSL_SITE);
}
template <typename T>
T __shfl_up_sync(unsigned mask, T value, unsigned delta, int width = 32, GENSSL_SITE_PARAMETERS) {
  const int source = genssl::cuda_on_cpu::current_fiber->lane() - static_cast<int>(delta);
  return genssl::cuda_on_cpu::shuffle(mask, value, genssl::cuda_on_cpu::segment_lane(source, width),
                                      GENSSL_SITE);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, GENSSL_SITE_PARAMETERS) {
  const int source = genssl::cuda_on_cpu::current_fiber->lane() + static_cast<int>(delta);
  return genssl::cuda_on_cpu::shuffle(mask, value, genssl::cuda_on_cpu::segment_lane(source, width),
                                      GENSSL_SITE);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, GENSSL_SITE_PARAMETERS) {
  const int source = genssl::cuda_on_cpu::current_fiber->lane() ^ lanes;
  return genssl::cuda_on_cpu::shuffle(mask, value, genssl::cuda_on_cpu::segment_lane(source, width),
                                      GENSSL_SITE);
}
inline unsigned __ballot_sync(unsigned mask, int predicate, GENSSL_SITE_PARAMETERS) {
  return genssl::cuda_on_cpu::ballot(mask, predicate != 0, GENSSL_SITE);
}
inline int __any_sync(unsigned mask, int predicate, GENSSL_SITE_PARAMETERS) {
  return genssl::cuda_on_cpu::ballot(mask, predicate != 0, GENSSL_SITE) != 0;
}
inline int __all_sync(unsigned mask, int predicate, GENSSL_SITE_PARAMETERS) {
  return genssl::cuda_on_cpu::ballot(mask, predicate == 0, GENSSL_SITE) == 0;
}

#define GENSSL_ATOMIC(name, expression)                                                    \
  template <typename T>                                                                    \
  T name(T* address, std::type_identity_t<T> value, GENSSL_SITE_PARAMETERS) {              \
    return genssl::cuda_on_cpu::atomic(address, GENSSL_SITE,                               \
                                       [=](T old) { return static_cast<T>(expression); }); \
  }
GENSSL_ATOMIC(atomicAdd, old + value)
GENSSL_ATOMIC(atomicSub, old - value)
GENSSL_ATOMIC(atomicMax, old > value ? old : value)
GENSSL_ATOMIC(atomicMin, old < value ? old : value)
GENSSL_ATOMIC(atomicExch, value)
GENSSL_ATOMIC(atomicAnd, old& value)
GENSSL_ATOMIC(atomicOr, old | value)
GENSSL_ATOMIC(atomicXor, old ^ value)
GENSSL_ATOMIC(atomicInc, old >= value ? 0 : old + 1)
#undef GENSSL_ATOMIC
template <typename T>
T atomicCAS(T* address, std::type_identity_t<T> expected, std::type_identity_t<T> desired,
            GENSSL_SITE_PARAMETERS) {
  return genssl::cuda_on_cpu::atomic(address, GENSSL_SITE,
                                     [=](T old) { return old == expected ? desired : old; });
}

inline void __nanosleep(unsigned, GENSSL_SITE_PARAMETERS) {
  genssl::cuda_on_cpu::current_grid->yield(GENSSL_SITE);
}
inline void __threadfence() {}
inline void __threadfence_block() {}
inline void __threadfence_system() {}
template <typename T>
T __ldg(const T* address) {
  return *address;
}
template <typename T>
T __ldcg(const T* address) {
  return *address;
}

inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline int __clz(int x) { return x == 0 ? 32 : __builtin_clz(static_cast<unsigned>(x)); }
inline unsigned __umulhi(unsigned a, unsigned b) {
  return static_cast<unsigned>(static_cast<uint64_t>(a) * b >> 32);
}
inline float __uint_as_float(unsigned bits) { return __builtin_bit_cast(float, bits); }
inline unsigned __float_as_uint(float value) { return __builtin_bit_cast(unsigned, value); }
inline float __int_as_float(int bits) { return __builtin_bit_cast(float, bits); }
inline int __float_as_int(float value) { return __builtin_bit_cast(int, value); }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }

namespace cooperative_groups {

struct grid_group {
  void sync(GENSSL_SITE_PARAMETERS) const {
    genssl::cuda_on_cpu::current_grid->wait_for_grid({"grid.sync", file, line});
  }
};
inline grid_group this_grid() { return {}; }

}  // namespace cooperative_groups

// The few names of the CUDA runtime that launchers use.
using cudaStream_t = void*;
enum cudaError_t { cudaSuccess };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };
inline const char* cudaGetErrorString(cudaError_t) { return "no error"; }
inline cudaError_t cudaSetDevice(int) { return cudaSuccess; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const auto& settings = genssl::cuda_on_cpu::settings;
  *value = attribute == cudaDevAttrMultiProcessorCount
               ? settings.num_multiprocessors
               : static_cast<int>(settings.max_shared_bytes);
  return cudaSuccess;
}
