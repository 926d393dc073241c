#include "kernels/score/film_mlp_launch.cuh"

namespace genssl::cuda {
namespace {

// Modulations of more times than this are made slice by slice, which bounds the workspace.
constexpr int64_t kMaxTimes = 16384;

int64_t slice_size(const FilmMLPArgs& args) {
  return args.per_sample_time && args.batch > kMaxTimes ? kMaxTimes : args.batch;
}

template <typename Real>
struct Setup {
  Problem problem;
  Plan plan;
  Preparation<Real> preparation;
  Workspace<Real> workspace;

  Setup(const FilmMLPArgs& args, const Device& device, void* memory)
      : problem(network_problem<Real>(args.tensors, slice_size(args), 1, 0, 0)),
        plan(choose_plan(problem, device)),
        preparation(args.tensors, plan, args.per_sample_time ? slice_size(args) : 1, device),
        workspace(memory, preparation, problem, plan) {}
};

template <int kSamples, bool kShared, typename Real>
cudaError_t launch_branch(const BranchArgs<Real>& args, const Plan& plan, dim3 grid,
                          cudaStream_t stream) {
  return launch(film_branch<kSamples, kShared, Real>, {grid, dim3(plan.threads), plan.shared_bytes},
                stream, args);
}

template <typename Real>
cudaError_t launch_branch(const BranchArgs<Real>& args, const Preparation<Real>& preparation,
                          cudaStream_t stream) {
  if (args.mlp.shape.output == 0) return cudaSuccess;  // a network without blocks
  const Plan& plan = preparation.branch_plan;
  const dim3 grid = preparation.branch_grid(args.count);
  if constexpr (sizeof(Real) == sizeof(float)) {
    if (plan.shared_activations) {
      if (plan.samples == 8) return launch_branch<8, true>(args, plan, grid, stream);
      if (plan.samples == 16) return launch_branch<16, true>(args, plan, grid, stream);
      return launch_branch<32, true>(args, plan, grid, stream);
    }
  }
  return launch_branch<8, false>(args, plan, grid, stream);
}

template <typename Real>
BranchArgs<Real> branch_args(const FilmMLPTensors& tensors, const Preparation<Real>& preparation,
                             const Workspace<Real>& workspace) {
  BranchArgs<Real> args{};
  args.mlp = preparation.branch;
  args.packed = workspace.branch;
  args.resident = preparation.branch_plan.resident;
  args.frequencies = tensors.frequencies;
  args.sin_first = tensors.sin_first != 0;
  args.workspace = workspace.branch_activations;
  return args;
}

template <int kSamples, bool kShared, typename Real>
cudaError_t launch_network(const NetworkArgs<Real>& args, const Plan& plan, cudaStream_t stream) {
  return launch(film_mlp<kSamples, kShared, Real>,
                {dim3(plan.blocks), dim3(plan.threads), plan.shared_bytes}, stream, args);
}

template <typename Real>
cudaError_t launch_network(const NetworkArgs<Real>& args, const Plan& plan, cudaStream_t stream) {
  if constexpr (sizeof(Real) == sizeof(float)) {
    if (plan.shared_activations) {
      if (plan.samples == 8) return launch_network<8, true>(args, plan, stream);
      if (plan.samples == 16) return launch_network<16, true>(args, plan, stream);
      return launch_network<32, true>(args, plan, stream);
    }
  }
  return launch_network<8, false>(args, plan, stream);
}

template <typename Real>
cudaError_t run(const FilmMLPArgs& args, const Device& device, void* memory, cudaStream_t stream) {
  const Setup<Real> setup(args, device, memory);
  cudaError_t error = launch_weights(args.tensors, setup.preparation, setup.workspace, stream);
  const int64_t slice = slice_size(args);
  const size_t row_bytes = args.tensors.dim * element_bytes(args.tensors.type);
  for (int64_t first = 0; first < args.batch && error == cudaSuccess; first += slice) {
    const int64_t batch = smaller<int64_t>(slice, args.batch - first);
    if (first == 0 || args.per_sample_time) {
      const Times times{args.times, first, 1, args.per_sample_time ? batch : 1};
      error = launch_times(args.tensors, times, setup.preparation, setup.workspace, stream);
      if (error != cudaSuccess) break;
    }
    NetworkArgs<Real> network = network_args(args.tensors, setup.preparation, setup.workspace,
                                             setup.plan, batch, args.per_sample_time != 0);
    network.x.data = static_cast<const char*>(args.tensors.x) + first * row_bytes;
    network.output = static_cast<char*>(args.output) + first * row_bytes;
    if (network.labels != nullptr) network.labels += first;
    error = launch_network(network, setup.plan, stream);
  }
  return error;
}

}  // namespace

template <typename Real>
cudaError_t launch_weights(const FilmMLPTensors& tensors, const Preparation<Real>& preparation,
                           const Workspace<Real>& workspace, cudaStream_t stream) {
  const ElementType type = tensors.type;
  const PackArgs<Real> network{preparation.network,
                               {{tensors.w_in, type},
                                {tensors.w, type},
                                {tensors.w_out, type},
                                {tensors.b_in, type},
                                {tensors.c, type},
                                {tensors.b_out, type}},
                               workspace.network};
  const PackArgs<Real> branch{
      preparation.branch,
      {{tensors.w_embed1, type}, {tensors.w_embed2, type}, {tensors.w_film, type}},
      workspace.branch};
  const int rows = preparation.network.total_rows() + preparation.branch.total_rows();
  const cudaError_t error =
      launch(pack_mlps<Real>, {dim3(rows), dim3(64)}, stream, network, branch);
  if (error != cudaSuccess || preparation.num_classes == 0) return error;
  BranchArgs<Real> args = branch_args(tensors, preparation, workspace);
  args.class_embedding = {tensors.class_embedding, type};
  args.count = preparation.num_classes;
  args.film = workspace.film_of_classes;
  return launch_branch(args, preparation, stream);
}

template <typename Real>
cudaError_t launch_times(const FilmMLPTensors& tensors, const Times& times,
                         const Preparation<Real>& preparation, const Workspace<Real>& workspace,
                         cudaStream_t stream) {
  BranchArgs<Real> args = branch_args(tensors, preparation, workspace);
  args.times = times;
  args.count = times.count;
  args.film = workspace.film_of_times;
  return launch_branch(args, preparation, stream);
}

#define GENSSL_INSTANTIATE(Real)                                                                   \
  template cudaError_t launch_weights(const FilmMLPTensors&, const Preparation<Real>&,             \
                                      const Workspace<Real>&, cudaStream_t);                       \
  template cudaError_t launch_times(const FilmMLPTensors&, const Times&, const Preparation<Real>&, \
                                    const Workspace<Real>&, cudaStream_t);
GENSSL_INSTANTIATE(float)
GENSSL_INSTANTIATE(double)
#undef GENSSL_INSTANTIATE

int film_mlp_workspace(const FilmMLPArgs& args, size_t* bytes) {
  Device device;
  const cudaError_t error = use_device(args.tensors.device, &device);
  if (error != cudaSuccess) return error;
  *bytes = args.tensors.type == ElementType::float64
               ? Setup<double>(args, device, nullptr).workspace.bytes
               : Setup<float>(args, device, nullptr).workspace.bytes;
  return cudaSuccess;
}

int launch_film_mlp(const FilmMLPArgs& args, void* workspace, void* stream) {
  Device device;
  const cudaError_t error = use_device(args.tensors.device, &device);
  if (error != cudaSuccess) return error;
  const auto queue = static_cast<cudaStream_t>(stream);
  return args.tensors.type == ElementType::float64 ? run<double>(args, device, workspace, queue)
                                                   : run<float>(args, device, workspace, queue);
}

const char* error_text(int error) { return cudaGetErrorString(static_cast<cudaError_t>(error)); }

}  // namespace genssl::cuda
