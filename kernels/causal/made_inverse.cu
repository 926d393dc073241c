#include "kernels/causal/made_inverse.cuh"
#include "kernels/common/packed_mlp_plan.cuh"

namespace genssl::cuda {
namespace {

// Units of a layer in a block of steps.
constexpr int kBlockUnits = 32;
constexpr int kFewSamples = 8, kManySamples = 32;

template <typename Real>
MADEShape make_shape(const MADEInverseArgs<Real>& args) {
  MADEShape shape{};
  shape.matrices = args.matrices;
  shape.dim = args.dim;
  shape.parameters = args.parameters;
  shape.activated = args.activated;
  shape.skips = args.skips;
  int widest = args.dim;
  for (int layer = 0; layer <= args.matrices; ++layer) {
    shape.width[layer] = static_cast<int>(args.width[layer]);
    shape.first_unit[layer + 1] = shape.first_unit[layer] + shape.width[layer];
    if (layer < args.matrices) widest = larger(widest, shape.width[layer]);
  }
  const int64_t steps = divide_up<int64_t>(int64_t{kBlockUnits} * args.dim, widest);
  shape.block_steps = static_cast<int>(smaller<int64_t>(steps, args.dim));
  for (int layer = 0; layer <= args.matrices; ++layer) {
    const bool is_last = layer == args.matrices;
    const int units = is_last ? shape.block_steps * args.parameters : shape.width[layer];
    shape.value_plane[layer] = shape.active_plane[layer] = shape.planes;
    shape.planes += units;
    if (is_last) break;
    const bool is_changed = (args.activated >> layer & 1) || args.input_gates[layer] != nullptr;
    if (is_changed && (args.skips >> (layer + 1) & 1)) {
      shape.active_plane[layer] = shape.planes;
      shape.planes += units;
    }
    shape.packed_offset[layer + 1] =
        shape.packed_offset[layer] + args.width[layer + 1] * padded(shape.width[layer]);
  }
  return shape;
}

// In fp64 the activations live in the workspace: right, and not tuned.
struct MADEPlan {
  int samples, blocks;
  size_t shared_bytes;  // 0: the activations are in the workspace
};

template <typename Real>
MADEPlan make_plan(const MADEShape& shape, int64_t batch, const Device& device) {
  const auto fits = [&](int samples) {
    const size_t bytes = sizeof(Real) * samples * shape.planes;
    return sizeof(Real) == sizeof(float) && bytes <= static_cast<size_t>(device.max_shared_bytes);
  };
  const bool many = batch > int64_t{kFewSamples} * device.num_multiprocessors && fits(kManySamples);
  const int samples = many ? kManySamples : kFewSamples;
  const int64_t tiles = divide_up<int64_t>(batch, samples);
  return {samples, static_cast<int>(smaller<int64_t>(tiles, device.num_multiprocessors)),
          fits(samples) ? sizeof(Real) * samples * shape.planes : 0};
}

// The regions of the workspace; made with a null pointer it only measures.
template <typename Real>
struct MADEWorkspace {
  Real *packed, *activations;
  MADEOrder order;
  size_t bytes = 0;

  MADEWorkspace(void* memory, const MADEShape& shape, const MADEPlan& plan) {
    packed = take<Real>(memory, shape.packed_offset[shape.matrices]);
    const int64_t per_block = int64_t{shape.planes} * plan.samples;
    activations = take<Real>(memory, plan.shared_bytes ? 0 : per_block * plan.blocks);
    order.place = take<int>(memory, shape.units());
    order.seen = take<int>(memory, shape.units());
    order.below = take<int>(memory, int64_t{shape.matrices} * shape.dim);
  }

 private:
  template <typename T>
  T* take(void* memory, int64_t count) {
    constexpr size_t kAlignment = 256;
    T* region = reinterpret_cast<T*>(static_cast<char*>(memory) + bytes);
    bytes += (count * sizeof(T) + kAlignment - 1) / kAlignment * kAlignment;
    return region;
  }
};

template <typename Real>
struct MADESetup {
  Device device;
  cudaError_t error;
  MADEShape shape;
  MADEPlan plan;

  explicit MADESetup(const MADEInverseArgs<Real>& args)
      : error(use_device(args.device, &device)), shape(make_shape(args)) {
    if (error == cudaSuccess) plan = make_plan<Real>(shape, args.batch, device);
  }
};

template <typename Real>
MADEKernelArgs<Real> kernel_args(const MADEInverseArgs<Real>& args, const MADEShape& shape,
                                 const MADEWorkspace<Real>& workspace) {
  MADEKernelArgs<Real> result{};
  static_assert(sizeof result <= 4096, "the arguments of a kernel");
  result.shape = shape;
  result.order = workspace.order;
  for (int matrix = 0; matrix < args.matrices; ++matrix) {
    result.weights[matrix] = args.weights[matrix];
    result.biases[matrix] = args.biases[matrix];
    result.degrees[matrix] = args.degrees[matrix];
    result.input_gates[matrix] = args.input_gates[matrix];
    result.output_gates[matrix] = args.output_gates[matrix];
  }
  result.per_sample_biases = args.per_sample_biases;
  result.batch = args.batch;
  result.activation = args.activation;
  result.transform = args.transform;
  result.packed = workspace.packed;
  result.activations = workspace.activations;
  result.y = args.y;
  result.x = args.x;
  result.log_abs_det = args.log_abs_det;
  return result;
}

template <int kSamples, bool kShared, typename Real>
cudaError_t launch_tiles(const MADEKernelArgs<Real>& args, const MADEPlan& plan,
                         cudaStream_t stream) {
  return launch(made_inverse<kSamples, kShared, Real>,
                {dim3(plan.blocks), dim3(kMaxThreads), plan.shared_bytes}, stream, args);
}

template <typename Real>
cudaError_t launch_tiles(const MADEKernelArgs<Real>& args, const MADEPlan& plan,
                         cudaStream_t stream) {
  if constexpr (sizeof(Real) == sizeof(float)) {
    if (plan.samples == kManySamples) return launch_tiles<kManySamples, true>(args, plan, stream);
    if (plan.shared_bytes) return launch_tiles<kFewSamples, true>(args, plan, stream);
  }
  return launch_tiles<kFewSamples, false>(args, plan, stream);
}

template <typename Real>
cudaError_t launch_order(const MADEKernelArgs<Real>& args, const Device& device,
                         cudaStream_t stream) {
  const MADEShape& shape = args.shape;
  const dim3 units(divide_up(shape.units(), kMaxThreads));
  const cudaError_t error = launch(made_order<Real>, {units, dim3(kMaxThreads)}, stream, args);
  if (error != cudaSuccess) return error;
  const dim3 rows(4 * device.num_multiprocessors, shape.matrices);
  return launch(made_pack<Real>, {rows, dim3(kMaxThreads)}, stream, args);
}

}  // namespace

template <class Real>
int made_inverse_workspace(const MADEInverseArgs<Real>& args, size_t* bytes) {
  const MADESetup<Real> setup(args);
  if (setup.error != cudaSuccess) return setup.error;
  *bytes = MADEWorkspace<Real>(nullptr, setup.shape, setup.plan).bytes;
  return cudaSuccess;
}

template <class Real>
int launch_made_inverse(const MADEInverseArgs<Real>& args, void* workspace, void* stream) {
  const MADESetup<Real> setup(args);
  if (setup.error != cudaSuccess) return setup.error;
  const MADEKernelArgs<Real> kernel =
      kernel_args(args, setup.shape, MADEWorkspace<Real>(workspace, setup.shape, setup.plan));
  const auto queue = static_cast<cudaStream_t>(stream);
  const cudaError_t error = launch_order(kernel, setup.device, queue);
  return error == cudaSuccess ? launch_tiles(kernel, setup.plan, queue) : error;
}

#define GENSSL_INSTANTIATE(Real)                                              \
  template int made_inverse_workspace(const MADEInverseArgs<Real>&, size_t*); \
  template int launch_made_inverse(const MADEInverseArgs<Real>&, void*, void*);
GENSSL_INSTANTIATE(float)
GENSSL_INSTANTIATE(double)
#undef GENSSL_INSTANTIATE

}  // namespace genssl::cuda
