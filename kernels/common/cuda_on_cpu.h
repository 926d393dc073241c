// Executes unchanged CUDA C++ on the CPU, so that kernels are tested where there is no GPU.
//
// Every CUDA thread is a fiber with a stack of its own. One fiber runs at a time, until it reaches a
// barrier, a warp collective, an atomic or a spin load; then a seeded generator picks the next one. So
// a missing barrier gives wrong numbers for most seeds, and what waits for ever is an error that says
// which threads wait at which line. Blocks run one after another in random order; a cooperative launch
// keeps all of them alive.
//
// Memory is as unkind as on a GPU: shared memory starts as NaN, and asynchronous copies land only when
// they are waited for. Dynamic shared memory is one allocation of exactly the requested size, so
// AddressSanitizer sees every access outside it; static shared arrays are checked by
// -fsanitize=bounds.
//
// What this cannot show: the memory model between unsynchronised threads, warp-synchronous code without
// __syncwarp, tensor cores, and speed.
#pragma once

#define GENSSL_CUDA_ON_CPU 1

#include <link.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <ucontext.h>

#include <algorithm>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <sstream>
#include <stdexcept>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#include <sanitizer/common_interface_defs.h>
#endif

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

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};
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

// What a test may choose.
struct Settings {
  uint64_t seed = 0;
  int num_multiprocessors = 4;
  size_t max_shared_bytes = 227 * 1024;
  // Switches without any progress after which spinning threads are taken to spin for ever.
  int64_t max_idle_switches = 1000000;
};
inline Settings settings;

constexpr int kWarpSize = 32;
constexpr int kMaxThreadsPerBlock = 1024;
constexpr unsigned char kPoison = 0xff;  // NaN in every floating-point type
#if defined(__SANITIZE_ADDRESS__)
constexpr size_t kStackBytes = 256 * 1024;
#else
constexpr size_t kStackBytes = 64 * 1024;
#endif

struct Site {
  const char* operation;
  const char* file;
  int line;
  bool operator==(const Site& other) const {
    return line == other.line && strcmp(file, other.file) == 0 &&
           strcmp(operation, other.operation) == 0;
  }
};

struct AsyncCopy {
  void* to;
  const void* from;
  size_t bytes;
};

enum class State { runnable, at_block_barrier, at_warp_barrier, at_grid_barrier, finished };

struct Block;

struct Fiber {
  ucontext_t context;
  std::unique_ptr<char[]> stack;
  void* sanitizer_stack = nullptr;
  Block* block = nullptr;
  uint3 thread{};
  int rank = 0;
  State state = State::runnable;
  Site site{};
  uint32_t mask = 0;           // lanes that take part in the warp collective
  int64_t contribution = 0;    // what this thread brings to a collective
  int64_t block_result[3]{};   // count, and, or
  int64_t gathered[kWarpSize]{};
  std::vector<std::vector<AsyncCopy>> copies{1};  // groups of copies in flight, the open one last

  int lane() const { return rank % kWarpSize; }
  int warp() const { return rank / kWarpSize; }
};

struct Block {
  uint3 index{};
  std::vector<Fiber*> fibers;
  std::unique_ptr<char[]> dynamic_shared;
  std::vector<char> static_shared;
};

// The variables declared __shared__ are thread_local, which puts them side by side in the module's
// thread-local segment: the scheduler exchanges its contents whenever it changes to another block.
inline thread_local char static_shared_anchor;

struct StaticShared {
  char* begin = nullptr;
  size_t size = 0;

  StaticShared() {
    static_shared_anchor = 1;
    dl_iterate_phdr(&find, this);
  }
  static int find(dl_phdr_info* info, size_t, void* result) {
    auto& self = *static_cast<StaticShared*>(result);
    const char* data = static_cast<const char*>(info->dlpi_tls_data);
    for (int i = 0; i < info->dlpi_phnum && data != nullptr; ++i) {
      const auto& header = info->dlpi_phdr[i];
      if (header.p_type != PT_TLS) continue;
      if (&static_shared_anchor < data || &static_shared_anchor >= data + header.p_memsz) continue;
      self.begin = const_cast<char*>(data);
      self.size = header.p_memsz;
      return 1;
    }
    return 0;
  }
};

class Grid;
inline Grid* current_grid = nullptr;
inline Fiber* current_fiber = nullptr;
inline dim3 current_grid_shape, current_block_shape;

class Grid {
 public:
  Grid(std::function<void()> kernel, dim3 grid, dim3 block, size_t shared_bytes, bool cooperative)
      : kernel_(std::move(kernel)),
        grid_(grid),
        block_(block),
        shared_bytes_(shared_bytes),
        cooperative_(cooperative) {
    random_.seed(settings.seed);
  }

  void run() {
    current_grid = this;
    current_grid_shape = grid_;
    current_block_shape = block_;
    std::vector<unsigned> order(grid_.x * grid_.y * grid_.z);
    for (unsigned i = 0; i < order.size(); ++i) order[i] = i;
    std::shuffle(order.begin(), order.end(), random_);
    if (cooperative_) {
      run_blocks(order);
    } else {
      for (unsigned block : order) run_blocks({block});
    }
    current_grid = nullptr;
  }

  // Suspends the running fiber until its barrier opens.
  void wait(State state, Site site) {
    current_fiber->state = state;
    current_fiber->site = site;
    suspend();
  }

  void wait_for_grid(Site site) {
    if (!cooperative_) throw std::runtime_error("grid.sync outside a cooperative launch");
    wait(State::at_grid_barrier, site);
  }

  // Lets another fiber run.
  void yield(Site site) {
    current_fiber->site = site;
    suspend();
  }

 private:
  void run_blocks(const std::vector<unsigned>& indices) {
    blocks_.clear();
    loaded_block_ = nullptr;
    idle_switches_ = 0;
    const size_t threads = block_.x * block_.y * block_.z;
    fibers_.resize(std::max(fibers_.size(), threads * indices.size()));
    for (unsigned index : indices) start_block(index, threads);
    std::vector<Fiber*> runnable;
    for (auto& block : blocks_) {
      runnable.insert(runnable.end(), block->fibers.begin(), block->fibers.end());
    }
    while (!runnable.empty()) {
      const size_t pick = random_() % runnable.size();
      Fiber* fiber = runnable[pick];
      resume(fiber);
      if (fiber->state == State::runnable) {
        check_spinning();
        continue;
      }
      idle_switches_ = 0;
      runnable[pick] = runnable.back();
      runnable.pop_back();
      open_barriers(fiber, &runnable);
    }
    check_all_finished();
  }

  void start_block(unsigned index, size_t threads) {
    auto block = std::make_unique<Block>();
    block->index = {index % grid_.x, index / grid_.x % grid_.y, index / grid_.x / grid_.y};
    block->dynamic_shared.reset(new char[shared_bytes_]);
    memset(block->dynamic_shared.get(), kPoison, shared_bytes_);
    block->static_shared.assign(static_shared_.size, static_cast<char>(kPoison));
    for (size_t rank = 0; rank < threads; ++rank) {
      auto& fiber = fibers_[blocks_.size() * threads + rank];
      if (!fiber) fiber = std::make_unique<Fiber>();
      start_fiber(fiber.get(), block.get(), static_cast<unsigned>(rank));
      block->fibers.push_back(fiber.get());
    }
    blocks_.push_back(std::move(block));
  }

  void start_fiber(Fiber* fiber, Block* block, unsigned rank) {
    if (!fiber->stack) fiber->stack.reset(new char[kStackBytes]);
#if defined(__SANITIZE_ADDRESS__)
    __asan_unpoison_memory_region(fiber->stack.get(), kStackBytes);
#endif
    fiber->block = block;
    fiber->rank = static_cast<int>(rank);
    fiber->thread = {rank % block_.x, rank / block_.x % block_.y, rank / block_.x / block_.y};
    fiber->state = State::runnable;
    fiber->copies.assign(1, {});
    getcontext(&fiber->context);
    fiber->context.uc_stack.ss_sp = fiber->stack.get();
    fiber->context.uc_stack.ss_size = kStackBytes;
    fiber->context.uc_link = nullptr;
    makecontext(&fiber->context, &Grid::fiber_main, 0);
  }

  static void fiber_main() {
    Grid* grid = current_grid;
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(nullptr, &grid->scheduler_stack_, &grid->scheduler_stack_bytes_);
#endif
    try {
      grid->kernel_();
    } catch (...) {
      grid->error_ = std::current_exception();
    }
    current_fiber->state = State::finished;
    grid->suspend();
  }

  void resume(Fiber* fiber) {
    load_static_shared(fiber->block);
    current_fiber = fiber;
#if defined(__SANITIZE_ADDRESS__)
    void* scheduler = nullptr;
    __sanitizer_start_switch_fiber(&scheduler, fiber->stack.get(), kStackBytes);
#endif
    swapcontext(&scheduler_, &fiber->context);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(scheduler, nullptr, nullptr);
#endif
    current_fiber = nullptr;
    if (error_) std::rethrow_exception(std::exchange(error_, nullptr));
  }

  void suspend() {
    Fiber* fiber = current_fiber;
#if defined(__SANITIZE_ADDRESS__)
    const bool ends = fiber->state == State::finished;
    __sanitizer_start_switch_fiber(ends ? nullptr : &fiber->sanitizer_stack, scheduler_stack_,
                                   scheduler_stack_bytes_);
#endif
    swapcontext(&fiber->context, &scheduler_);
#if defined(__SANITIZE_ADDRESS__)
    __sanitizer_finish_switch_fiber(fiber->sanitizer_stack, &scheduler_stack_,
                                    &scheduler_stack_bytes_);
#endif
  }

  void load_static_shared(Block* block) {
    if (block == loaded_block_) return;
    if (loaded_block_) {
      memcpy(loaded_block_->static_shared.data(), static_shared_.begin, static_shared_.size);
    }
    memcpy(static_shared_.begin, block->static_shared.data(), static_shared_.size);
    loaded_block_ = block;
  }

  // A thread has stopped: opens the barriers that waited for nobody else. A thread that has returned no
  // longer takes part in any barrier.
  void open_barriers(Fiber* stopped, std::vector<Fiber*>* runnable) {
    const bool finished = stopped->state == State::finished;
    if (finished || stopped->state == State::at_block_barrier) {
      open_block_barrier(stopped->block, runnable);
    }
    if (finished || stopped->state == State::at_warp_barrier) {
      open_warp_barriers(stopped, runnable);
    }
    if (finished || stopped->state == State::at_grid_barrier) open_grid_barrier(runnable);
  }

  static bool all_wait(const std::vector<Fiber*>& fibers, State state, std::vector<Fiber*>* waiting) {
    waiting->clear();
    for (Fiber* fiber : fibers) {
      if (fiber->state == State::finished) continue;
      if (fiber->state != state) return false;
      if (!waiting->empty() && !(fiber->site == waiting->front()->site)) return false;
      waiting->push_back(fiber);
    }
    return !waiting->empty();
  }

  static void release(const std::vector<Fiber*>& waiting, std::vector<Fiber*>* runnable) {
    for (Fiber* fiber : waiting) {
      fiber->state = State::runnable;
      runnable->push_back(fiber);
    }
  }

  void open_block_barrier(Block* block, std::vector<Fiber*>* runnable) {
    if (!all_wait(block->fibers, State::at_block_barrier, &waiting_)) return;
    int64_t count = 0;
    for (Fiber* fiber : waiting_) count += fiber->contribution != 0;
    for (Fiber* fiber : waiting_) {
      fiber->block_result[0] = count;
      fiber->block_result[1] = count == static_cast<int64_t>(waiting_.size());
      fiber->block_result[2] = count > 0;
    }
    release(waiting_, runnable);
  }

  void open_warp_barriers(Fiber* stopped, std::vector<Fiber*>* runnable) {
    const auto& fibers = stopped->block->fibers;
    const size_t first = static_cast<size_t>(stopped->warp()) * kWarpSize;
    const size_t last = std::min(first + kWarpSize, fibers.size());
    for (size_t i = first; i < last; ++i) {
      if (fibers[i]->state != State::at_warp_barrier) continue;
      const uint32_t mask = fibers[i]->mask;
      std::vector<Fiber*> members;
      for (size_t j = first; j < last; ++j) {
        if (mask >> (j - first) & 1) members.push_back(fibers[j]);
      }
      if (!all_wait(members, State::at_warp_barrier, &waiting_)) continue;
      if (!std::all_of(waiting_.begin(), waiting_.end(),
                       [mask](Fiber* fiber) { return fiber->mask == mask; })) {
        continue;
      }
      for (Fiber* fiber : waiting_) {
        memset(fiber->gathered, kPoison, sizeof fiber->gathered);
        for (Fiber* other : waiting_) fiber->gathered[other->lane()] = other->contribution;
        fiber->mask = 0;
        for (Fiber* other : waiting_) fiber->mask |= 1u << other->lane();
      }
      release(waiting_, runnable);
    }
  }

  void open_grid_barrier(std::vector<Fiber*>* runnable) {
    std::vector<Fiber*> all;
    for (auto& block : blocks_) {
      all.insert(all.end(), block->fibers.begin(), block->fibers.end());
    }
    if (all_wait(all, State::at_grid_barrier, &waiting_)) release(waiting_, runnable);
  }

  void check_spinning() {
    if (++idle_switches_ > settings.max_idle_switches) fail("threads spin without progress");
  }

  void check_all_finished() {
    for (auto& block : blocks_) {
      for (Fiber* fiber : block->fibers) {
        if (fiber->state != State::finished) fail("deadlock");
      }
    }
  }

  [[noreturn]] void fail(const char* what) {
    std::ostringstream text;
    text << what << ":";
    for (auto& block : blocks_) describe(*block, &text);
    throw std::runtime_error(text.str());
  }

  static void describe(const Block& block, std::ostringstream* text) {
    std::map<std::string, std::vector<int>> threads_at;
    for (Fiber* fiber : block.fibers) {
      std::ostringstream place;
      if (fiber->state == State::finished) {
        place << "have returned";
      } else {
        place << (fiber->state == State::runnable ? "spin at " : "wait at ")
              << fiber->site.operation << " (" << fiber->site.file << ":" << fiber->site.line << ")";
      }
      threads_at[place.str()].push_back(fiber->rank);
    }
    *text << "\n  block (" << block.index.x << ", " << block.index.y << ", " << block.index.z << "):";
    for (const auto& [place, threads] : threads_at) {
      *text << "\n    " << threads.size() << " threads, the first " << threads.front() << ", "
            << place;
    }
  }

  std::function<void()> kernel_;
  dim3 grid_, block_;
  size_t shared_bytes_;
  bool cooperative_;
  std::mt19937_64 random_;
  StaticShared static_shared_;
  std::vector<std::unique_ptr<Fiber>> fibers_;
  std::vector<std::unique_ptr<Block>> blocks_;
  std::vector<Fiber*> waiting_;
  Block* loaded_block_ = nullptr;
  int64_t idle_switches_ = 0;
  ucontext_t scheduler_;
  const void* scheduler_stack_ = nullptr;
  size_t scheduler_stack_bytes_ = 0;
  std::exception_ptr error_;
};

// Runs `kernel` over the grid; arguments are converted to the parameters as a launch does.
template <typename... Parameters, typename... Arguments>
void launch(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes,
            bool cooperative, Arguments&&... arguments) {
  if (block.x * block.y * block.z > kMaxThreadsPerBlock || block.x * block.y * block.z == 0 ||
      grid.x * grid.y * grid.z == 0 || shared_bytes > settings.max_shared_bytes) {
    std::ostringstream text;
    text << "invalid launch: " << grid.x << "x" << grid.y << "x" << grid.z << " blocks of " << block.x
         << "x" << block.y << "x" << block.z << " threads with " << shared_bytes
         << " bytes of shared memory";
    throw std::runtime_error(text.str());
  }
  std::tuple<Parameters...> copies(std::forward<Arguments>(arguments)...);
  Grid([=] { std::apply(kernel, copies); }, grid, block, shared_bytes, cooperative).run();
}

inline void* dynamic_shared() { return current_fiber->block->dynamic_shared.get(); }

// Waits until every live lane of `mask` has come here with its value; all values are then in gathered.
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
#define GENSSL_SITE_PARAMETERS \
  const char *file = __builtin_FILE(), int line = __builtin_LINE()
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
  return genssl::cuda_on_cpu::shuffle(
      mask, value, genssl::cuda_on_cpu::segment_lane(source, width), GENSSL_SITE);
}
template <typename T>
T __shfl_down_sync(unsigned mask, T value, unsigned delta, int width = 32, GENSSL_SITE_PARAMETERS) {
  const int source = genssl::cuda_on_cpu::current_fiber->lane() + static_cast<int>(delta);
  return genssl::cuda_on_cpu::shuffle(
      mask, value, genssl::cuda_on_cpu::segment_lane(source, width), GENSSL_SITE);
}
template <typename T>
T __shfl_xor_sync(unsigned mask, T value, int lanes, int width = 32, GENSSL_SITE_PARAMETERS) {
  const int source = genssl::cuda_on_cpu::current_fiber->lane() ^ lanes;
  return genssl::cuda_on_cpu::shuffle(
      mask, value, genssl::cuda_on_cpu::segment_lane(source, width), GENSSL_SITE);
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

#define GENSSL_ATOMIC(name, expression)                                                     \
  template <typename T>                                                                     \
  T name(T* address, std::type_identity_t<T> value, GENSSL_SITE_PARAMETERS) {               \
    return genssl::cuda_on_cpu::atomic(address, GENSSL_SITE,                                \
                                       [=](T old) { return static_cast<T>(expression); });  \
  }
GENSSL_ATOMIC(atomicAdd, old + value)
GENSSL_ATOMIC(atomicSub, old - value)
GENSSL_ATOMIC(atomicMax, old > value ? old : value)
GENSSL_ATOMIC(atomicMin, old < value ? old : value)
GENSSL_ATOMIC(atomicExch, value)
GENSSL_ATOMIC(atomicAnd, old & value)
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
enum cudaError_t { cudaSuccess = 0, cudaErrorInvalidValue = 1, cudaErrorLaunchFailure = 719 };
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount, cudaDevAttrMaxSharedMemoryPerBlockOptin };
inline const char* cudaGetErrorString(cudaError_t error) {
  return error == cudaSuccess ? "no error" : "launch failure";
}
inline cudaError_t cudaGetDevice(int* device) {
  *device = 0;
  return cudaSuccess;
}
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr attribute, int) {
  const auto& settings = genssl::cuda_on_cpu::settings;
  *value = attribute == cudaDevAttrMultiProcessorCount
               ? settings.num_multiprocessors
               : static_cast<int>(settings.max_shared_bytes);
  return cudaSuccess;
}
