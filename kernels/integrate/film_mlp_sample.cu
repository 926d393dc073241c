#include "kernels/integrate/film_mlp_sample.cuh"
#include "kernels/score/film_mlp_launch.cuh"

namespace genssl::cuda {
namespace {

constexpr int kTailColumns = 6;

int num_columns(const FilmMLPSampleArgs& args) {
  return args.num_states + args.num_predictions + kTailColumns;
}

template <typename Real>
struct Setup {
  Problem problem;
  Plan plan;
  Preparation<Real> preparation;
  Workspace<Real> workspace;

  Setup(const FilmMLPSampleArgs& args, const Device& device, void* memory)
      : problem(network_problem<Real>(
            args.tensors, args.batch, args.num_rows,
            sampler_elements(args.tensors.dim, args.num_states, args.num_predictions),
            kMaxCoefficients * sizeof(Real))),
        plan(choose_plan(problem, device)),
        preparation(args.tensors, plan, args.num_rows, device),
        workspace(memory, preparation, problem, plan) {}
};

template <typename Real>
SampleArgs<Real> sample_args(const FilmMLPSampleArgs& args, const Setup<Real>& setup) {
  SampleArgs<Real> result{};
  result.network =
      network_args(args.tensors, setup.preparation, setup.workspace, setup.plan, args.batch, false);
  result.network.output = args.output;
  result.coefficients = args.coefficients;
  result.num_rows = args.num_rows;
  result.num_states = args.num_states;
  result.num_predictions = args.num_predictions;
  result.clip = args.clip;
  result.seed = args.seed;
  result.step = args.step;
  result.first_sample = args.first_sample;
  result.seed_tensor = args.seed_tensor;
  result.step_tensor = args.step_tensor;
  result.noise = {args.noise, args.tensors.type};
  return result;
}

template <int kSamples, bool kShared, typename Real>
cudaError_t launch_loop(const SampleArgs<Real>& args, const Plan& plan, cudaStream_t stream) {
  return launch(film_mlp_sample<kSamples, kShared, Real>,
                {dim3(plan.blocks), dim3(plan.threads), plan.shared_bytes}, stream, args);
}

template <typename Real>
cudaError_t launch_loop(const SampleArgs<Real>& args, const Plan& plan, cudaStream_t stream) {
  if constexpr (sizeof(Real) == sizeof(float)) {
    if (plan.shared_activations) {
      if (plan.samples == 8) return launch_loop<8, true>(args, plan, stream);
      if (plan.samples == 16) return launch_loop<16, true>(args, plan, stream);
      return launch_loop<32, true>(args, plan, stream);
    }
  }
  return launch_loop<8, false>(args, plan, stream);
}

template <typename Real>
cudaError_t run(const FilmMLPSampleArgs& args, const Device& device, void* memory,
                cudaStream_t stream) {
  const Setup<Real> setup(args, device, memory);
  cudaError_t error = launch_weights(args.tensors, setup.preparation, setup.workspace, stream);
  if (error != cudaSuccess) return error;
  const int columns = num_columns(args);
  const Times times{{args.coefficients, ElementType::float64}, columns - 1, columns, args.num_rows};
  error = launch_times(args.tensors, times, setup.preparation, setup.workspace, stream);
  if (error != cudaSuccess) return error;
  return launch_loop(sample_args(args, setup), setup.plan, stream);
}

}  // namespace

int film_mlp_sample_workspace(const FilmMLPSampleArgs& args, size_t* bytes) {
  Device device;
  const cudaError_t error = use_device(args.tensors.device, &device);
  if (error != cudaSuccess) return error;
  *bytes = args.tensors.type == ElementType::float64
               ? Setup<double>(args, device, nullptr).workspace.bytes
               : Setup<float>(args, device, nullptr).workspace.bytes;
  return cudaSuccess;
}

int launch_film_mlp_sample(const FilmMLPSampleArgs& args, void* workspace, void* stream) {
  Device device;
  const cudaError_t error = use_device(args.tensors.device, &device);
  if (error != cudaSuccess) return error;
  const auto queue = static_cast<cudaStream_t>(stream);
  return args.tensors.type == ElementType::float64 ? run<double>(args, device, workspace, queue)
                                                   : run<float>(args, device, workspace, queue);
}

}  // namespace genssl::cuda
