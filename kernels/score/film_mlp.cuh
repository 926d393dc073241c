// A residual FiLM-MLP score network in one kernel, and the small kernel of its time branch.
//
//   e        = silu(W_e2 silu(W_e1 embedding(t)))
//   [g, b]_l = W_f,l e + W_f,l class_embedding[label]
//   h_0      = W_in x + b_in
//   h_{l+1}  = h_l + silu((1 + g_l) (W_l h_l + c_l) + b_l)
//   output   = W_out h_L + b_out
//
// Launches: pack the weights of both chains; the time branch once per distinct time, and its last
// layer once per class (it is linear, so the two parts are added where they are used); then the
// network, a tile of 8, 16 or 32 samples per block. 2 L H^2 + 4 D H flops a sample. Per tile the
// weights are read once from the L2 cache, or, where they stay in shared memory, once per block.
//
// 1024 samples of a 2-128x3-2 network: 99 kflop a sample, 201 KB of packed weights. Tiles of 8
// samples fill 128 of the 132 multiprocessors of an H200; a layer of 128 x 128 x 8 takes at least
// 1024 cycles of the 128 fp32 lanes, all of them about 2 us, so the launches dominate a single
// forward pass. No figure here is measured yet: written on a machine without a GPU.
#pragma once

#include "kernels/common/packed_mlp.cuh"
#include "kernels/score/film_mlp_cuda.h"

namespace genssl::cuda {

// Times of a batch (stride 1, or 0 for one time) or of the rows of a table.
struct Times {
  Array values;
  int64_t first, stride, count;

  template <typename Real>
  __device__ Real at(int64_t index) const {
    return load<Real>(values, first + index * stride);
  }
};

// Elements of the modulation [L, 2, H] of one time or class.
__host__ __device__ inline int64_t film_size(const MLPShape& network) {
  return int64_t{2} * network.hidden * network.hidden_layers;
}

template <typename Real>
struct BranchArgs {
  PackedMLP mlp;
  const Real* packed;
  bool resident;
  Times times;
  Array frequencies;
  bool sin_first;
  Array class_embedding;  // not null: the rows are classes, and only the last layer runs
  int64_t count;
  Real* film;       // [count, L, 2, H]
  Real* workspace;  // activations that do not fit into shared memory
};

template <typename Real>
struct SiluEpilogue {
  struct Output {};
  Real* output;
  int stride;

  __device__ Output load(int) const { return {}; }
  __device__ void store(int sample, int index, Real sum, const Output&) const {
    output[sample * stride + index] = silu(sum);
  }
};

// Rows [first, count) of a matrix in global memory.
template <typename Real>
struct RowsEpilogue {
  struct Output {};
  Real* output;
  int64_t stride, first, count;

  __device__ Output load(int) const { return {}; }
  __device__ void store(int sample, int index, Real sum, const Output&) const {
    if (first + sample < count) output[(first + sample) * stride + index] = sum;
  }
};

// Element `index` of the embedding of a time.
template <typename Real>
__device__ Real embedding_element(const BranchArgs<Real>& args, int64_t row, int index) {
  const int half = args.mlp.shape.input / 2;
  if (index >= 2 * half || row >= args.count) return 0;
  const Real angle = args.times.template at<Real>(row) * load<Real>(args.frequencies, index % half);
  return (index < half) == args.sin_first ? sin(angle) : cos(angle);
}

template <typename Real>
__device__ Real class_element(const BranchArgs<Real>& args, int64_t row, int index) {
  const int embed = args.mlp.shape.hidden;
  if (index >= embed || row >= args.count) return 0;
  return load<Real>(args.class_embedding, row * embed + index);
}

__host__ __device__ inline int branch_stride(const MLPShape& shape) {
  return padded(larger(shape.input, shape.hidden));
}

// grid.x: tiles of times or classes; grid.y: parts of the last layer, each with the first two
// again.
template <int kSamples, bool kShared, typename Real>
__global__ void __launch_bounds__(kMaxThreads, 1) film_branch(const BranchArgs<Real> args) {
  const PackedMLP& mlp = args.mlp;
  const bool of_classes = args.class_embedding.data != nullptr;
  const int row_tiles = mlp.last.row_tiles, stride = branch_stride(mlp.shape);
  Real* shared = static_cast<Real*>(dynamic_shared());
  const int64_t block = blockIdx.y * gridDim.x + blockIdx.x;
  Real* activations = kShared ? shared + weights_size(mlp, args.resident)
                              : args.workspace + block * 2 * kSamples * stride;
  Real* other = activations + kSamples * stride;
  const Section section{of_classes ? 2 : 0, static_cast<int>(row_tiles * blockIdx.y / gridDim.y),
                        static_cast<int>(row_tiles * (blockIdx.y + 1) / gridDim.y)};
  WeightStream<Real> weights(mlp, args.packed, shared, args.resident, section);
  for (int i = threadIdx.x; i < 2 * kSamples * stride; i += blockDim.x) activations[i] = 0;
  for (int64_t first = int64_t{blockIdx.x} * kSamples; first < args.count;
       first += int64_t{gridDim.x} * kSamples) {
    __syncthreads();
    const int width = of_classes ? mlp.shape.hidden : mlp.shape.input;
    for (int i = threadIdx.x; i < kSamples * width; i += blockDim.x) {
      const int row = i / width, index = i % width;
      activations[row * stride + index] = of_classes ? class_element(args, first + row, index)
                                                     : embedding_element(args, first + row, index);
    }
    __syncthreads();
    for (int layer = section.first_layer; layer < 2; ++layer) {
      apply_layer<kSamples>(weights, layer, layer == 0 ? activations : other, stride, false,
                            SiluEpilogue<Real>{layer == 0 ? other : activations, stride});
    }
    apply_last_layer<kSamples>(weights, activations, stride,
                               RowsEpilogue<Real>{args.film, mlp.shape.output, first, args.count});
  }
  weights.finish();
}

// Modulation of a tile of samples.
template <typename Real>
struct Film {
  const Real* of_times;    // of the tile's first time
  const Real* of_classes;  // of class 0, or null
  bool per_sample_time;

  __device__ bool per_sample() const { return per_sample_time || of_classes != nullptr; }
};

template <typename Real>
struct BiasEpilogue {
  struct Output {
    Real bias;
  };
  const Real* bias;
  Real* output;
  int stride;

  __device__ Output load(int index) const { return {bias[index]}; }
  __device__ void store(int sample, int index, Real sum, const Output& constants) const {
    output[sample * stride + index] = sum + constants.bias;
  }
};

// Of the first layer (block -1), which has no modulation and no residual, and of every block: one
// code for both, since the multiplication is instantiated with it.
template <typename Real>
struct BlockEpilogue {
  struct Output {
    Real bias, scale, shift;
  };
  const Real* bias;  // of this layer
  Film<Real> film;
  const int* rows;  // of each sample: its time's row and its class
  int hidden, block, samples;
  int64_t film_stride;
  const Real* input;
  Real* output;
  int stride;

  __device__ Output load(int index) const {
    Output constants{bias[index], 0, 0};
    if (block < 0 || film.per_sample()) return constants;
    const Real* modulation = film.of_times + int64_t{2} * block * hidden + index;
    constants.scale = modulation[0];
    constants.shift = modulation[hidden];
    return constants;
  }

  __device__ void store(int sample, int index, Real sum, Output constants) const {
    Real value = sum + constants.bias;
    if (block >= 0) {
      if (film.per_sample()) add_modulation(sample, index, &constants);
      value = input[sample * stride + index] +
              silu(fma(Real(1) + constants.scale, value, constants.shift));
    }
    output[sample * stride + index] = value;
  }

  __device__ void add_modulation(int sample, int index, Output* constants) const {
    const int64_t place = int64_t{2} * block * hidden + index;
    const Real* of_time = film.of_times + rows[sample] * film_stride + place;
    constants->scale = of_time[0];
    constants->shift = of_time[hidden];
    if (film.of_classes == nullptr) return;
    const Real* of_class = film.of_classes + rows[samples + sample] * film_stride + place;
    constants->scale += of_class[0];
    constants->shift += of_class[hidden];
  }
};

template <typename Real>
struct NetworkArgs {
  PackedMLP mlp;
  const Real* packed;
  bool resident;
  Array x;
  void* output;  // [B, D], of the type of x
  int64_t batch;
  Film<Real> film;
  const int64_t* labels;
  int num_classes;
  Real* workspace;
};

// What a block keeps of its tile. Shared memory: rows, what the caller reserves, the weights, then
// the activations: x, padded(D) wide, one or two hidden buffers, and the rest, which is the
// caller's.
template <int kSamples, bool kShared, typename Real>
struct Network {
  const NetworkArgs<Real>& args;
  int* rows;  // [2, kSamples]: row of the time, class
  Real *reserved, *weights, *x, *hidden, *other_hidden, *rest;
  int x_stride, hidden_stride;

  __device__ Network(const NetworkArgs<Real>& args, int num_reserved, int64_t rest_per_sample)
      : args(args) {
    const MLPShape& shape = args.mlp.shape;
    x_stride = padded(shape.input);
    hidden_stride = padded(shape.hidden);
    const int buffers = hidden_buffers(shape, args.mlp.tile);
    const int64_t per_sample = x_stride + buffers * hidden_stride + rest_per_sample;
    rows = static_cast<int*>(dynamic_shared());
    reserved = reinterpret_cast<Real*>(rows + 2 * kSamples);
    weights = reserved + num_reserved;
    x = kShared ? weights + weights_size(args.mlp, args.resident)
                : args.workspace + per_sample * kSamples * blockIdx.x;
    hidden = x + kSamples * x_stride;
    other_hidden = hidden + (buffers - 1) * kSamples * hidden_stride;
    rest = other_hidden + kSamples * hidden_stride;
    for (int64_t i = threadIdx.x; i < per_sample * kSamples; i += blockDim.x) x[i] = 0;
  }

  __device__ Section section() const { return {0, 0, args.mlp.last.row_tiles}; }
  __device__ const Real* bias(int layer) const {
    return args.packed + args.mlp.size() + static_cast<int64_t>(layer) * args.mlp.shape.hidden;
  }

  // Samples past the end of the batch are zeros with the last sample's class; they are never
  // stored.
  __device__ void load_samples(int64_t first) {
    const int dim = args.mlp.shape.input;
    for (int i = threadIdx.x; i < kSamples * dim; i += blockDim.x) {
      const int row = i / dim, column = i % dim;
      const int64_t sample = first + row;
      x[row * x_stride + column] =
          sample < args.batch ? load<Real>(args.x, sample * dim + column) : Real(0);
    }
    for (int i = threadIdx.x; i < kSamples; i += blockDim.x) {
      const int64_t sample = first + i < args.batch ? first + i : args.batch - 1;
      rows[i] = args.film.per_sample_time ? static_cast<int>(sample) : 0;
      rows[kSamples + i] = args.labels ? class_of(args.labels[sample]) : 0;
    }
    __syncthreads();
  }

  // Labels are checked elsewhere; here they must only never lead outside the table.
  __device__ int class_of(int64_t label) const {
    const int64_t last = args.num_classes - 1;
    return static_cast<int>(label < 0 ? 0 : label > last ? last : label);
  }

  // All layers but the last; returns the activations that the last one reads.
  __device__ const Real* hidden_layers(WeightStream<Real>& weight_stream, const Film<Real>& film) {
    const MLPShape& shape = args.mlp.shape;
    const Real* from = x;
    Real* to = hidden;
    for (int layer = 0; layer <= shape.hidden_layers; ++layer) {
      apply_layer<kSamples>(
          weight_stream, layer, from, layer == 0 ? x_stride : hidden_stride, from == to,
          BlockEpilogue<Real>{bias(layer), film, rows, shape.hidden, layer - 1, kSamples,
                              film_size(shape), from, to, hidden_stride});
      from = to;
      to = to == hidden ? other_hidden : hidden;
    }
    return from;
  }
};

template <typename Real>
struct OutputEpilogue {
  struct Output {
    Real bias;
  };
  const Real* bias;
  void* output;
  ElementType type;
  int64_t first, batch;
  int dim;

  __device__ Output load(int index) const { return {bias[index]}; }
  __device__ void store(int sample, int index, Real sum, const Output& constants) const {
    if (first + sample >= batch) return;
    cuda::store(output, type, (first + sample) * dim + index, sum + constants.bias);
  }
};

template <int kSamples, bool kShared, typename Real>
__global__ void __launch_bounds__(kMaxThreads, 1) film_mlp(const NetworkArgs<Real> args) {
  Network<kSamples, kShared, Real> network(args, 0, 0);
  WeightStream<Real> weights(args.mlp, args.packed, network.weights, args.resident,
                             network.section());
  const MLPShape& shape = args.mlp.shape;
  for (int64_t first = int64_t{blockIdx.x} * kSamples; first < args.batch;
       first += int64_t{gridDim.x} * kSamples) {
    __syncthreads();
    network.load_samples(first);
    const Real* h = network.hidden_layers(weights, args.film);
    apply_last_layer<kSamples>(
        weights, h, network.hidden_stride,
        OutputEpilogue<Real>{network.bias(shape.hidden_layers + 1), args.output, args.x.type, first,
                             args.batch, shape.output});
  }
  weights.finish();
}

}  // namespace genssl::cuda
