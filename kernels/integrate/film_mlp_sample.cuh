// The whole sampling loop of a FiLM-MLP score model in one kernel.
//
// Row i of the coefficient table, for every sample of the batch:
//   output     = film_mlp(x, time_i)
//   prediction = clip(d0 x + d1 output)
//   x'         = sum_j a_j state_j + sum_j b_j prediction_j + e output + c noise_i
//
// Samples are independent: a block takes a tile of them through all rows before the next tile, and
// nothing but its samples enters or leaves. The modulations of all rows are made once, by
// film_branch. State, history and noise of the tile stay in shared memory, and so do all weights
// where they fit (201 KB for 2-128x3-2). The noise is drawn by the warps that the narrow last layer
// leaves idle.
//
// 1024 samples, 100 rows, 2-128x3-2 on an H200: 10 Gflop, 0.17 ms at 60 Tflop/s. Expected from the
// instruction counts of the sm_90a code, not measured: a row takes 3 x 1600 cycles for the hidden
// layers (38 instructions for 32 multiply-adds, then the epilogue), 700 for the chain of 128
// dependent multiply-adds of the last layer, 400 for the rest; 100 rows 0.35 ms.
#pragma once

#include "kernels/common/philox.h"
#include "kernels/integrate/film_mlp_sample_cuda.h"
#include "kernels/score/film_mlp.cuh"

namespace genssl::cuda {

template <typename Real>
struct SampleArgs {
  NetworkArgs<Real> network;
  const double* coefficients;  // [N, S + M + 6]
  int num_rows, num_states, num_predictions;
  double clip;  // NaN: each row's own
  int64_t seed, step, first_sample;
  const int64_t *seed_tensor, *step_tensor;
  Array noise;  // [N, B, D], or null: drawn
};

// A row of the table, in shared memory.
template <typename Real>
struct Row {
  const Real* values;
  int num_states, num_predictions;

  __device__ Real state(int j) const { return values[j]; }
  __device__ Real prediction(int j) const { return values[num_states + j]; }
  __device__ Real output() const { return tail(0); }
  __device__ Real noise() const { return tail(1); }
  __device__ Real denoise(int j) const { return tail(2 + j); }
  __device__ Real clip() const { return tail(4); }

 private:
  __device__ Real tail(int i) const { return values[num_states + num_predictions + i]; }
};

// Elements a tile keeps per sample besides the network's: output, noise, and the history.
__host__ __device__ inline int64_t sampler_elements(int dim, int num_states, int num_predictions) {
  const int history = num_states - 1 + (num_predictions > 1 ? num_predictions - 1 : 0);
  return static_cast<int64_t>(2 + history) * dim;
}

// The last `size` values of one element, one step of the ring apart; all zero at first.
template <typename Real>
struct History {
  Real* values;
  int64_t stride;
  int size;

  // The value `age` steps old at row i, 1 <= age <= size.
  __device__ Real at(int row, int age) const { return values[(row + size - age) % size * stride]; }
  __device__ void push(int row, Real value) const {
    if (size > 0) values[row % size * stride] = value;
  }
};

template <int kSamples, typename Real>
struct Sampler {
  const SampleArgs<Real>& args;
  int dim;
  Real *output, *noise, *states, *predictions;  // [.., kSamples, D]
  uint64_t seed;
  int64_t step;

  __device__ Sampler(const SampleArgs<Real>& args, Real* memory)
      : args(args), dim(args.network.mlp.shape.output) {
    const int elements = kSamples * dim;
    output = memory;
    noise = output + elements;
    states = noise + elements;
    predictions = states + (args.num_states - 1) * elements;
    seed = static_cast<uint64_t>(args.seed_tensor ? *args.seed_tensor : args.seed);
    step = args.step_tensor ? *args.step_tensor : args.step;
  }

  __device__ int num_old_predictions() const {
    return args.num_predictions > 1 ? args.num_predictions - 1 : 0;
  }

  // History before the first row counts as zero.
  __device__ void forget() {
    const int count = (args.num_states - 1 + num_old_predictions()) * kSamples * dim;
    for (int i = threadIdx.x; i < count; i += blockDim.x) states[i] = 0;
  }

  __device__ Row<Real> load_row(int row, Real* coefficients) const {
    const int columns = args.num_states + args.num_predictions + 6;
    for (int i = threadIdx.x; i < columns; i += blockDim.x) {
      coefficients[i] = static_cast<Real>(args.coefficients[int64_t{row} * columns + i]);
    }
    return {coefficients, args.num_states, args.num_predictions};
  }

  // The last threads come first: the narrow last layer keeps the others busy.
  __device__ void draw_noise(int row, int64_t first) {
    using namespace genssl::GENSSL_ISA;
    const int blocks = divide_up(dim, 4);
    for (int i = blockDim.x - 1 - threadIdx.x; i < kSamples * blocks; i += blockDim.x) {
      const int sample = i % kSamples, block = i / kSamples;
      float z[4];
      normals_from_block(philox4x32_10(seed, block, static_cast<uint32_t>(step + row),
                                       static_cast<uint64_t>(args.first_sample + first + sample)),
                         z);
      for (int j = 0; j < smaller(4, dim - 4 * block); ++j) {
        noise[sample * dim + 4 * block + j] = z[j];
      }
    }
  }

  __device__ Real noise_at(int row, int64_t sample, int i, int column) const {
    if (args.noise.data == nullptr) return noise[i];
    return load<Real>(args.noise, (row * args.network.batch + sample) * dim + column);
  }

  // Replaces x [kSamples, x_stride] by x'.
  __device__ void update(const Row<Real>& row, int index, int64_t first, Real* x, int x_stride) {
    const int64_t elements = int64_t{kSamples} * dim;
    for (int thread = threadIdx.x; thread < elements; thread += blockDim.x) {
      const int tile_sample = thread % kSamples, column = thread / kSamples;
      const int64_t sample = first + tile_sample;
      if (sample >= args.network.batch) continue;
      const int i = tile_sample * dim + column;
      Real* place = x + tile_sample * x_stride + column;
      const History<Real> old_states{states + i, elements, args.num_states - 1};
      const History<Real> old_predictions{predictions + i, elements, num_old_predictions()};
      const Real state = *place;
      const Real prediction = clip(row, fma(row.denoise(1), output[i], row.denoise(0) * state));
      Real sum = row.state(0) * state;
      for (int j = 1; j < args.num_states; ++j) {
        sum = fma(row.state(j), old_states.at(index, j), sum);
      }
      if (args.num_predictions > 0) sum = fma(row.prediction(0), prediction, sum);
      for (int j = 1; j < args.num_predictions; ++j) {
        sum = fma(row.prediction(j), old_predictions.at(index, j), sum);
      }
      sum = fma(row.output(), output[i], sum);
      if (row.noise() != Real(0)) sum = fma(row.noise(), noise_at(index, sample, i, column), sum);
      old_states.push(index, state);
      old_predictions.push(index, prediction);
      *place = sum;
    }
  }

  // NaN passes through, so that a broken model does not go unnoticed.
  __device__ Real clip(const Row<Real>& row, Real value) const {
    const Real bound = args.clip == args.clip ? static_cast<Real>(args.clip) : row.clip();
    return value < -bound ? -bound : value > bound ? bound : value;
  }
};

template <typename Real>
__device__ void store_samples(const NetworkArgs<Real>& args, int64_t first, int samples,
                              const Real* x, int x_stride) {
  const int dim = args.mlp.shape.output;
  for (int i = threadIdx.x; i < samples * dim; i += blockDim.x) {
    const int64_t sample = first + i / dim;
    if (sample < args.batch) {
      store(args.output, args.x.type, sample * dim + i % dim, x[i / dim * x_stride + i % dim]);
    }
  }
}

template <int kSamples, bool kShared, typename Real>
__global__ void __launch_bounds__(kMaxThreads, 1) film_mlp_sample(const SampleArgs<Real> args) {
  const MLPShape& shape = args.network.mlp.shape;
  Network<kSamples, kShared, Real> network(
      args.network, kMaxCoefficients,
      sampler_elements(shape.output, args.num_states, args.num_predictions));
  Sampler<kSamples, Real> sampler(args, network.rest);
  WeightStream<Real> weights(args.network.mlp, args.network.packed, network.weights,
                             args.network.resident, network.section());
  for (int64_t first = int64_t{blockIdx.x} * kSamples; first < args.network.batch;
       first += int64_t{gridDim.x} * kSamples) {
    __syncthreads();
    network.load_samples(first);
    sampler.forget();
    for (int i = 0; i < args.num_rows; ++i) {
      const Row<Real> row = sampler.load_row(i, network.reserved);
      Film<Real> film = args.network.film;
      film.of_times += i * film_size(shape);
      const Real* h = network.hidden_layers(weights, film);
      if (args.noise.data == nullptr && row.noise() != Real(0)) sampler.draw_noise(i, first);
      apply_last_layer<kSamples>(
          weights, h, network.hidden_stride,
          BiasEpilogue<Real>{network.bias(shape.hidden_layers + 1), sampler.output, shape.output});
      sampler.update(row, i, first, network.x, network.x_stride);
      __syncthreads();
    }
    store_samples(args.network, first, kSamples, network.x, network.x_stride);
  }
  weights.finish();
}

}  // namespace genssl::cuda
