// What the launchers of the FiLM-MLP and of its sampling loop share: plans, workspace, preparation.
#pragma once

#include "kernels/common/packed_mlp_plan.cuh"
#include "kernels/score/film_mlp.cuh"

namespace genssl::cuda {

inline MLPShape network_shape(const FilmMLPTensors& tensors) {
  return {tensors.dim, tensors.hidden, tensors.dim, tensors.blocks};
}

inline MLPShape branch_shape(const FilmMLPTensors& tensors) {
  return {tensors.time_dim, tensors.embed, 2 * tensors.hidden * tensors.blocks, 1};
}

// In fp64 the activations live in the workspace: right, and not tuned.
template <typename Real>
constexpr int kMaxSamples = sizeof(Real) == sizeof(float) ? 32 : 0;

// `rest` elements per sample and `extra_bytes` are what the kernel needs besides the network.
template <typename Real>
Problem network_problem(const FilmMLPTensors& tensors, int64_t batch, int64_t passes, int64_t rest,
                        size_t extra_bytes) {
  return {network_shape(tensors),
          batch,
          passes,
          padded(tensors.dim) + rest,
          kMaxSamples<Real>,
          sizeof(Real),
          sizeof(int) * 2 * 32 + extra_bytes};
}

// The plan of the network and of its time branch, for `num_times` rows at once.
template <typename Real>
struct Preparation {
  PackedMLP network, branch;
  Plan branch_plan;
  int64_t num_times, num_classes;
  Device device;

  Preparation(const FilmMLPTensors& tensors, const Plan& plan, int64_t num_times,
              const Device& device)
      : network(network_shape(tensors), plan.tile),
        num_times(num_times),
        num_classes(tensors.labels != nullptr ? tensors.num_classes : 0),
        device(device) {
    const MLPShape shape = branch_shape(tensors);
    const Problem problem{
        shape, num_times, 1, int64_t{2} * branch_stride(shape), kMaxSamples<Real>, sizeof(Real), 0};
    branch_plan = choose_plan(problem, device);
    branch = PackedMLP(shape, branch_plan.tile);
  }

  // Few rows leave multiprocessors idle, so the last layer is split between blocks.
  dim3 branch_grid(int64_t rows) const {
    const int64_t tiles = divide_up<int64_t>(rows, branch_plan.samples);
    const int x = static_cast<int>(smaller<int64_t>(tiles, device.num_multiprocessors));
    return dim3(x, smaller(branch.last.row_tiles, divide_up(device.num_multiprocessors, x)));
  }
  int64_t branch_activations(int64_t rows) const {
    const dim3 grid = branch_grid(rows);
    return branch_plan.shared_activations
               ? 0
               : int64_t{2} * branch_plan.samples * branch_stride(branch.shape) * grid.x * grid.y;
  }
};

// The regions of the workspace; made with a null pointer it only measures.
template <typename Real>
struct Workspace {
  Real *network, *branch, *film_of_times, *film_of_classes, *branch_activations, *activations;
  size_t bytes = 0;

  Workspace(void* memory, const Preparation<Real>& preparation, const Problem& problem,
            const Plan& plan) {
    const int64_t film = film_size(preparation.network.shape);
    const int64_t of_times = preparation.branch_activations(preparation.num_times);
    const int64_t of_classes =
        preparation.num_classes ? preparation.branch_activations(preparation.num_classes) : 0;
    network = take(memory, preparation.network.size() + preparation.network.total_rows());
    branch = take(memory, preparation.branch.size());
    film_of_times = take(memory, film * preparation.num_times);
    film_of_classes = take(memory, film * preparation.num_classes);
    branch_activations = take(memory, of_times > of_classes ? of_times : of_classes);
    const size_t per_block = activation_bytes(problem, plan.tile, plan.samples);
    activations = take(memory, plan.shared_activations
                                   ? 0
                                   : static_cast<int64_t>(per_block / sizeof(Real)) * plan.blocks);
  }

 private:
  Real* take(void* memory, int64_t count) {
    constexpr size_t kAlignment = 256;
    Real* region = reinterpret_cast<Real*>(static_cast<char*>(memory) + bytes);
    bytes += (count * sizeof(Real) + kAlignment - 1) / kAlignment * kAlignment;
    return region;
  }
};

// Packs the weights and makes the modulation of every class.
template <typename Real>
cudaError_t launch_weights(const FilmMLPTensors& tensors, const Preparation<Real>& preparation,
                           const Workspace<Real>& workspace, cudaStream_t stream);

// Makes the modulation of every time.
template <typename Real>
cudaError_t launch_times(const FilmMLPTensors& tensors, const Times& times,
                         const Preparation<Real>& preparation, const Workspace<Real>& workspace,
                         cudaStream_t stream);

template <typename Real>
NetworkArgs<Real> network_args(const FilmMLPTensors& tensors, const Preparation<Real>& preparation,
                               const Workspace<Real>& workspace, const Plan& plan, int64_t batch,
                               bool per_sample_time) {
  NetworkArgs<Real> args{};
  args.mlp = preparation.network;
  args.packed = workspace.network;
  args.resident = plan.resident;
  args.x = {tensors.x, tensors.type};
  args.batch = batch;
  args.film = {workspace.film_of_times,
               preparation.num_classes ? workspace.film_of_classes : nullptr, per_sample_time};
  args.labels = tensors.labels;
  args.num_classes = tensors.num_classes;
  args.workspace = workspace.activations;
  return args;
}

}  // namespace genssl::cuda
