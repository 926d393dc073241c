// Small kernels that exercise cuda_on_cpu: `cases <name> <seed>` prints numbers, or the error and
// exits 1.
#include <cstdio>

#include "kernels/common/cuda_on_cpu.h"

namespace {

using namespace genssl::cuda_on_cpu;

void print(const std::vector<double>& values) {
  for (double value : values) printf("%g ", value);
  printf("\n");
}

// Sum over a block by warps; the barrier between writing and reading the partial sums may be left
// out.
template <bool kBarrier>
__global__ void block_sum(const float* values, float* sums) {
  __shared__ float partial[32];
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  float sum = values[blockIdx.x * blockDim.x + threadIdx.x];
  for (int distance = 16; distance > 0; distance /= 2) {
    sum += __shfl_xor_sync(0xffffffffu, sum, distance);
  }
  if (lane == 0) partial[warp] = sum;
  if (kBarrier) __syncthreads();
  if (threadIdx.x != 0) return;
  sum = 0;
  for (unsigned i = 0; i < blockDim.x / 32; ++i) sum += partial[i];
  sums[blockIdx.x] = sum;
}

template <bool kBarrier>
void run_block_sum() {
  std::vector<float> values(3 * 128), sums(3);
  for (size_t i = 0; i < values.size(); ++i) values[i] = static_cast<float>(i / 128 + 1);
  launch(block_sum<kBarrier>, 3, 128, 0, false, values.data(), sums.data());
  print({sums[0], sums[1], sums[2]});
}

__global__ void divergent_barrier() {
  if (threadIdx.x < 3) {
    __syncthreads();
  } else {
    __syncwarp(0xfffffff8u);
    __syncthreads();
  }
}

__global__ void early_return(int* result) {
  if (threadIdx.x % 2) return;
  __syncthreads();
  atomicAdd(result, 1);
}

__global__ void votes(int* results) {
  const int predicate = threadIdx.x < 40;
  const int count = __syncthreads_count(predicate);
  const int all = __syncthreads_and(predicate), any = __syncthreads_or(predicate);
  if (threadIdx.x == 0) {
    results[0] = count;
    results[1] = all;
    results[2] = any;
  }
  const unsigned even = 0x55555555u;
  if (threadIdx.x < 32 && threadIdx.x % 2 == 0) {
    const unsigned low = __ballot_sync(even, threadIdx.x < 8);
    const int some = __any_sync(even, threadIdx.x == 30),
              every = __all_sync(even, threadIdx.x < 30);
    if (threadIdx.x == 0) {
      results[3] = static_cast<int>(low);
      results[4] = some;
      results[5] = every;
    }
  }
}

__global__ void shuffles(double* results) {
  const int lane = threadIdx.x;
  double* row = results + lane;
  row[0] = __shfl_sync(0xffffffffu, lane, 5);
  row[32] = __shfl_up_sync(0xffffffffu, lane, 3, 8);
  row[64] = __shfl_down_sync(0xffffffffu, static_cast<double>(lane), 3, 16);
  row[96] = __shfl_xor_sync(0xffffffffu, static_cast<float>(lane), 4);
}

__global__ void wrong_mask() { __shfl_sync(0x1u, 1.0f, 0); }

__global__ void atomics(int* counts, float* total, unsigned long long* largest, int* swapped) {
  atomicAdd(&counts[threadIdx.x % 4], 1);
  atomicAdd(total, 0.5f);
  atomicMax(largest, threadIdx.x + 100 * blockIdx.x);
  int seen = *swapped;
  while (true) {
    const int found = atomicCAS(swapped, seen, seen + 2);
    if (found == seen) break;
    seen = found;
  }
}

// Every block keeps its own static shared memory while all of them are alive.
__global__ void grid_sum(float* partial, float* result) {
  __shared__ float own;
  if (threadIdx.x == 0) own = static_cast<float>(blockIdx.x + 1);
  __syncthreads();
  if (threadIdx.x == 0) partial[blockIdx.x] = 10 * own;
  cooperative_groups::this_grid().sync();
  float sum = own;
  for (unsigned i = 0; i < gridDim.x; ++i) sum += partial[i];
  result[blockIdx.x * blockDim.x + threadIdx.x] = sum;
}

__global__ void wait_for_flag(int* flag, int* result, int flag_block) {
  if (static_cast<int>(blockIdx.x) == flag_block && threadIdx.x == 0) atomicExch(flag, 7);
  while (atomicAdd(flag, 0) == 0) __nanosleep(100);
  result[blockIdx.x] = *flag;
}

template <bool kWait>
__global__ void copies(const float* from, float* to) {
  float* shared = static_cast<float*>(dynamic_shared());
  async_copy(shared + 4 * threadIdx.x, from + 4 * threadIdx.x, 16);
  async_commit();
  if (kWait) async_wait(0);
  __syncthreads();
  to[threadIdx.x] = shared[threadIdx.x];
}

template <bool kWait>
void run_copies() {
  std::vector<float> from(16), to(4);
  for (int i = 0; i < 16; ++i) from[i] = static_cast<float>(i);
  launch(copies<kWait>, 1, 4, 64, false, from.data(), to.data());
  print({to[0], to[1], to[2], to[3]});
}

__global__ void fresh_shared(float* values) {
  __shared__ float fixed[2];
  values[2 * blockIdx.x] = fixed[1];
  values[2 * blockIdx.x + 1] = static_cast<float*>(dynamic_shared())[1];
  fixed[1] = static_cast<float*>(dynamic_shared())[1] = 1;
}

__global__ void indices(int* values) {
  const int thread = threadIdx.x + blockDim.x * (threadIdx.y + blockDim.y * threadIdx.z);
  const int block = blockIdx.x + gridDim.x * (blockIdx.y + gridDim.y * blockIdx.z);
  values[thread + 24 * block] = 1000 * block + thread;
}

__global__ void past_dynamic_shared(float* out, int index) {
  static_cast<float*>(dynamic_shared())[index] = 1;
  out[0] = static_cast<float*>(dynamic_shared())[0];
}

__global__ void past_static_shared(float* out, int index) {
  __shared__ float fixed[8];
  fixed[index] = 1;
  out[0] = fixed[index];
}

__global__ void past_global(float* out, int index) { out[index] = 1; }

template <typename Kernel>
void run_past(Kernel kernel) {
  std::unique_ptr<float[]> out(new float[8]);
  launch(kernel, 1, 1, 32, false, out.get(), 8);
  print({out[0]});
}

const std::map<std::string, void (*)()> kCases = {
    {"block_sum", run_block_sum<true>},
    {"missing_barrier", run_block_sum<false>},
    {"divergent_barrier", [] { launch(divergent_barrier, 1, 32, 0, false); }},
    {"early_return",
     [] {
       int result = 0;
       launch(early_return, 1, 64, 0, false, &result);
       print({static_cast<double>(result)});
     }},
    {"votes",
     [] {
       int results[6] = {};
       launch(votes, 1, 64, 0, false, results);
       print(std::vector<double>(results, results + 6));
     }},
    {"shuffles",
     [] {
       std::vector<double> results(128);
       launch(shuffles, 1, 32, 0, false, results.data());
       print(results);
     }},
    {"wrong_mask", [] { launch(wrong_mask, 1, 32, 0, false); }},
    {"atomics",
     [] {
       int counts[4] = {}, swapped = 0;
       float total = 0;
       unsigned long long largest = 0;
       launch(atomics, 2, 32, 0, false, counts, &total, &largest, &swapped);
       print({1.0 * counts[0], 1.0 * counts[3], total, 1.0 * largest, 1.0 * swapped});
     }},
    {"grid_sum",
     [] {
       std::vector<float> partial(3), result(12);
       launch(grid_sum, 3, 4, 0, true, partial.data(), result.data());
       print(std::vector<double>(result.begin(), result.end()));
     }},
    {"grid_sync_alone",
     [] {
       std::vector<float> partial(3), result(12);
       launch(grid_sum, 3, 4, 0, false, partial.data(), result.data());
     }},
    {"wait_for_flag",
     [] {
       int flag = 0, result[3] = {};
       launch(wait_for_flag, 3, 2, 0, true, &flag, result, 2);
       print(std::vector<double>(result, result + 3));
     }},
    {"spin_for_ever",
     [] {
       int flag = 0, result[3] = {};
       settings.max_idle_switches = 10000;
       launch(wait_for_flag, 3, 2, 0, true, &flag, result, -1);
     }},
    {"copies", run_copies<true>},
    {"missing_wait", run_copies<false>},
    {"fresh_shared",
     [] {
       float values[4] = {};
       launch(fresh_shared, 2, 1, 8, false, values);
       print(std::vector<double>(values, values + 4));
     }},
    {"indices",
     [] {
       std::vector<int> values(24 * 12);
       launch(indices, dim3(3, 2, 2), dim3(4, 3, 2), 0, false, values.data());
       print(std::vector<double>(values.begin(), values.end()));
     }},
    {"too_much_shared", [] { launch(past_global, 1, 1, 1 << 20, false, nullptr, 0); }},
    {"past_dynamic_shared", [] { run_past(past_dynamic_shared); }},
    {"past_static_shared", [] { run_past(past_static_shared); }},
    {"past_global", [] { run_past(past_global); }},
};

}  // namespace

int main(int count, char** words) {
  if (count != 3 || !kCases.count(words[1])) return 2;
  settings.seed = strtoull(words[2], nullptr, 10);
  try {
    kCases.at(words[1])();
  } catch (const std::exception& error) {
    printf("%s\n", error.what());
    return 1;
  }
  return 0;
}
