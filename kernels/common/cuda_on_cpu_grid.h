// The fibers, blocks and barriers behind cuda_on_cpu.h.
#pragma once

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

struct uint3 {
  unsigned x, y, z;
};
struct dim3 {
  unsigned x, y, z;
  dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {}
};

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
  uint32_t mask = 0;          // lanes that take part in the warp collective
  int64_t contribution = 0;   // what this thread brings to a collective
  int64_t block_result[3]{};  // count, and, or
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
    __sanitizer_finish_switch_fiber(nullptr, &grid->scheduler_stack_,
                                    &grid->scheduler_stack_bytes_);
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

  // A thread has stopped: opens the barriers that waited for nobody else. A thread that has
  // returned no longer takes part in any barrier.
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

  static bool all_wait(const std::vector<Fiber*>& fibers, State state,
                       std::vector<Fiber*>* waiting) {
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
              << fiber->site.operation << " (" << fiber->site.file << ":" << fiber->site.line
              << ")";
      }
      threads_at[place.str()].push_back(fiber->rank);
    }
    *text << "\n  block (" << block.index.x << ", " << block.index.y << ", " << block.index.z
          << "):";
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

}  // namespace genssl::cuda_on_cpu
