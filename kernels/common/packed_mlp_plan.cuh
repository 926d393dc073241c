// How the launches of packed_mlp.cuh use a machine: samples per tile, tiles of weights, memory.
#pragma once

#include "kernels/common/packed_mlp.cuh"

namespace genssl::cuda {

struct Device {
  int num_multiprocessors, max_shared_bytes;
};

// Makes a device current. The CUDA runtime that is linked in keeps a current device of its own,
// which PyTorch's device guard does not set.
inline cudaError_t use_device(int index, Device* device) {
  cudaError_t error = cudaSetDevice(index);
  if (error != cudaSuccess) return error;
  error =
      cudaDeviceGetAttribute(&device->num_multiprocessors, cudaDevAttrMultiProcessorCount, index);
  if (error != cudaSuccess) return error;
  return cudaDeviceGetAttribute(&device->max_shared_bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin,
                                index);
}

// How a launch uses the machine.
struct Plan {
  int samples, threads, blocks;
  TileShape tile;
  bool resident;            // all weights stay in shared memory
  bool shared_activations;  // otherwise they are in the workspace: any width works
  size_t shared_bytes;
};

struct Problem {
  MLPShape shape;
  int64_t batch;
  int64_t passes;       // how often each tile of samples goes through the network
  int64_t activations;  // elements per sample that the kernel keeps besides the hidden ones
  int max_samples;      // the largest tile of samples there is a kernel for
  size_t real_bytes, extra_bytes;  // of one number; of shared memory, whatever the tile
};

inline size_t activation_bytes(const Problem& problem, const TileShape& tile, int samples) {
  const int64_t hidden =
      static_cast<int64_t>(padded(problem.shape.hidden)) * hidden_buffers(problem.shape, tile);
  return samples * (hidden + problem.activations) * problem.real_bytes;
}

// Time of a plan in units of one sample's arithmetic: rounds of tiles over the multiprocessors,
// each as long as its samples plus what a tile costs by itself (barriers; reading the weights
// again).
inline int64_t plan_cost(const Plan& plan, int64_t batch, int multiprocessors) {
  const int64_t rounds =
      divide_up<int64_t>(divide_up<int64_t>(batch, plan.samples), multiprocessors);
  return rounds * (plan.samples + (plan.resident ? 4 : 16));
}

inline Plan make_plan(const Problem& problem, const Device& device, const Plan& layout) {
  Plan plan = layout;
  const PackedMLP mlp(problem.shape, plan.tile);
  const int64_t tiles = divide_up<int64_t>(problem.batch, plan.samples);
  const size_t weights = weights_size(mlp, plan.resident);
  plan.threads = plan.tile.rows / kWarpOutputs * 32;
  plan.shared_bytes = weights * problem.real_bytes + problem.extra_bytes;
  if (plan.shared_activations) {
    plan.shared_bytes += activation_bytes(problem, plan.tile, plan.samples);
  }
  const int64_t per_multiprocessor =
      larger<int64_t>(1, device.max_shared_bytes / static_cast<int64_t>(plan.shared_bytes));
  plan.blocks = static_cast<int>(smaller(tiles, device.num_multiprocessors * per_multiprocessor));
  return plan;
}

// The cheapest plan that fits; the last resort keeps the activations in the workspace.
inline Plan choose_plan(const Problem& problem, const Device& device) {
  const int warps = divide_up(problem.shape.hidden, kWarpOutputs);
  const int rows = larger(kMinWarps, smaller(warps, kMaxWarps)) * kWarpOutputs;
  const int all_columns = larger(problem.shape.input, problem.shape.hidden);
  Plan best =
      make_plan(problem, device, {8, 0, 0, {kMinWarps * kWarpOutputs, 16}, false, false, 0});
  bool found = false;
  const auto consider = [&](int samples, int columns, bool resident) {
    const Plan plan =
        make_plan(problem, device, {samples, 0, 0, {rows, columns}, resident, true, 0});
    if (plan.shared_bytes > static_cast<size_t>(device.max_shared_bytes)) return false;
    const bool better = !found || plan_cost(plan, problem.batch, device.num_multiprocessors) <
                                      plan_cost(best, problem.batch, device.num_multiprocessors);
    if (better) best = plan;
    found = true;
    return true;
  };
  for (int samples = 8; samples <= problem.max_samples; samples *= 2) {
    const int64_t tiles = divide_up<int64_t>(problem.batch, samples);
    const int64_t uses = problem.passes * divide_up<int64_t>(tiles, device.num_multiprocessors);
    if (uses > 1) consider(samples, all_columns, true);
    for (int columns : {64, 32, 16}) {
      if (consider(samples, columns, false)) break;
    }
  }
  return best;
}

}  // namespace genssl::cuda
