// The inverse of a masked autoregressive transform on CUDA; see made_inverse.h for the formula.
//
// Launches: sort the units of every layer by degree, on the device, so that nothing is waited for;
// bring the weights into that order; then the inverse, a tile of 8 or 32 samples per block through
// all dimensions, activations in shared memory or, where they do not fit, in the workspace.
//
// A step is one dimension in the order of degrees: first the hidden units of a degree below its
// own that are still missing, layer by layer, then its parameters and the dimension. Steps are
// taken in blocks of about 32 units a layer. When a block starts, the sums of its units run over
// what earlier blocks have found, with a thread for each (unit, sample); between the barriers of a
// step there is then only the short rest. So a tile reads each weight once.
//
// A sum is one chain of fused multiply-adds from the bias over units in the order of degrees, so
// that a sample's result depends on neither its place in the batch nor the tile. No figure here is
// measured yet: written on a machine without a GPU.
#pragma once

#include "kernels/causal/made_inverse_cuda.h"
#include "kernels/coupling/transforms.cuh"

namespace genssl::cuda {

// Layer 0 is the input and the last one has the parameters, in the order of the input. Planes are
// [units][samples]; sums become values there, activated values have a plane of their own only where
// a skip adds the others.
struct MADEShape {
  int matrices, dim, parameters, block_steps, planes;
  int width[kMaxMADELayers + 1], first_unit[kMaxMADELayers + 2];
  int value_plane[kMaxMADELayers + 1], active_plane[kMaxMADELayers + 1];
  int64_t packed_offset[kMaxMADELayers + 1];
  int64_t activated, skips;

  __host__ __device__ bool is_last(int matrix) const { return matrix + 1 == matrices; }
  __host__ __device__ int units() const { return first_unit[matrices]; }
  __device__ int row_layer(int matrix) const { return is_last(matrix) ? 0 : matrix + 1; }
};

// Of every layer but the last, unit after unit in the order of degrees.
struct MADEOrder {
  int* place;  // [units]: where it is given
  int* seen;   // [units]: how many units of the layer before it sees
  int* below;  // [matrices, D]: how many units are of lower degree than a dimension
};

template <typename Real>
struct MADEKernelArgs {
  MADEShape shape;
  MADEOrder order;
  const Real* weights[kMaxMADELayers];
  const Real* biases[kMaxMADELayers];
  const int64_t* degrees[kMaxMADELayers];
  const Real *input_gates[kMaxMADELayers], *output_gates[kMaxMADELayers];
  int64_t per_sample_biases, batch;
  Activation activation;
  ElementwiseOptions<Real> transform;
  Real* packed;       // [rows, padded(columns)] of every matrix
  Real* activations;  // of every block, where shared memory is too small
  const Real* y;
  Real *x, *log_abs_det;
};

template <typename Real>
__device__ int count_below(const MADEKernelArgs<Real>& args, int layer, int64_t degree) {
  int count = 0;
  for (int i = 0; i < args.shape.width[layer]; ++i) count += args.degrees[layer][i] < degree;
  return count;
}

// A thread for each unit.
template <typename Real>
__global__ void __launch_bounds__(kMaxThreads, 1)
    made_order(const __grid_constant__ MADEKernelArgs<Real> args) {
  const MADEShape& shape = args.shape;
  const int unit = static_cast<int>(blockIdx.x * blockDim.x + threadIdx.x);
  if (unit >= shape.units()) return;
  int layer = 0;
  while (unit >= shape.first_unit[layer + 1]) ++layer;
  const int given = unit - shape.first_unit[layer];
  const int64_t* degrees = args.degrees[layer];
  const int64_t degree = degrees[given];
  int rank = count_below(args, layer, degree);
  for (int i = 0; i < given; ++i) rank += degrees[i] == degree;
  const int sorted = shape.first_unit[layer] + rank;
  args.order.place[sorted] = given;
  if (layer > 0) {
    args.order.seen[sorted] = 0;
    for (int i = 0; i < shape.width[layer - 1]; ++i) {
      args.order.seen[sorted] += args.degrees[layer - 1][i] <= degree;
    }
    return;
  }
  for (int other = 0; other < shape.matrices; ++other) {
    args.order.below[other * shape.dim + rank] = count_below(args, other, degree);
  }
}

// Where row `row` of a matrix, in the order of degrees, is given.
template <typename Real>
__device__ int given_row(const MADEKernelArgs<Real>& args, int matrix, int row) {
  const MADEShape& shape = args.shape;
  const int group = shape.is_last(matrix) ? shape.parameters : 1;
  const int* place = args.order.place + shape.first_unit[shape.row_layer(matrix)];
  return place[row / group] * group + row % group;
}

// grid.y: matrices.
template <typename Real>
__global__ void __launch_bounds__(kMaxThreads, 1)
    made_pack(const __grid_constant__ MADEKernelArgs<Real> args) {
  const int matrix = blockIdx.y, columns = args.shape.width[matrix], stride = padded(columns);
  const int* place = args.order.place + args.shape.first_unit[matrix];
  Real* packed = args.packed + args.shape.packed_offset[matrix];
  for (int row = blockIdx.x; row < args.shape.width[matrix + 1]; row += gridDim.x) {
    const Real* weights =
        args.weights[matrix] + static_cast<int64_t>(given_row(args, matrix, row)) * columns;
    for (int column = threadIdx.x; column < columns; column += blockDim.x) {
      packed[static_cast<int64_t>(row) * stride + column] = weights[place[column]];
    }
  }
}

// One tile of samples. Those past the end of the batch repeat the last; they are never stored.
template <int kSamples, typename Real>
class MADEInversion {
 public:
  __device__ MADEInversion(const MADEKernelArgs<Real>& args, Real* activations, int64_t first)
      : args_(args), shape_(args.shape), activations_(activations), first_(first) {}

  __device__ void run() {
    for (int first = 0; first < shape_.dim; first += shape_.block_steps) {
      first_step_ = first;
      const int last = smaller(first + shape_.block_steps, shape_.dim);
      for (int matrix = 0; matrix < shape_.matrices; ++matrix) start_sums(matrix, last);
      __syncthreads();
      for (int step = first; step < last; ++step) {
        for (int matrix = 0; matrix + 1 < shape_.matrices; ++matrix) find_units(matrix, step);
        find_dimension(step);
      }
    }
    const int64_t sample = first_ + threadIdx.x;
    if (threadIdx.x < kSamples && sample < args_.batch) args_.log_abs_det[sample] = log_sum_;
  }

 private:
  struct Rows {
    int begin, end;
  };

  __device__ bool is_activated(int layer) const { return shape_.activated >> layer & 1; }
  __device__ Real& value(int layer, int unit, int sample) const {
    return activations_[(shape_.value_plane[layer] + unit) * kSamples + sample];
  }
  __device__ Real& active(int layer, int unit, int sample) const {
    return activations_[(shape_.active_plane[layer] + unit) * kSamples + sample];
  }
  __device__ int64_t clamped(int sample) const { return smaller(first_ + sample, args_.batch - 1); }

  // Units of a layer that are found before a step.
  __device__ int found(int layer, int step) const {
    if (layer == 0) return step;
    return step == 0 ? 0 : args_.order.below[layer * shape_.dim + step - 1];
  }
  // What of a matrix belongs to steps [first, last).
  __device__ Rows rows(int matrix, int first, int last) const {
    if (shape_.is_last(matrix)) return {first * shape_.parameters, last * shape_.parameters};
    return {found(matrix + 1, first), found(matrix + 1, last)};
  }
  __device__ int seen(int matrix, int row) const {
    if (!shape_.is_last(matrix)) return args_.order.seen[shape_.first_unit[matrix + 1] + row];
    return args_.order.below[matrix * shape_.dim + row / shape_.parameters];
  }
  // The place of a row's sum in its plane: parameters are kept for one block of steps.
  __device__ int place(int matrix, int row) const {
    return shape_.is_last(matrix) ? row - first_step_ * shape_.parameters : row;
  }

  // Calls body(row, sample) with a thread for each.
  template <typename Body>
  __device__ void for_each(const Rows& rows, const Body& body) const {
    for (int i = threadIdx.x; i < (rows.end - rows.begin) * kSamples; i += blockDim.x) {
      body(rows.begin + i / kSamples, i % kSamples);
    }
  }

  // sum + w[begin, end) a[begin, end).
  __device__ Real accumulate(int matrix, int row, int sample, int begin, int end, Real sum) const {
    const Real* weights = args_.packed + shape_.packed_offset[matrix] +
                          static_cast<int64_t>(row) * padded(shape_.width[matrix]);
    const Real* values = &active(matrix, 0, sample);
#pragma unroll 8
    for (int k = begin; k < end; ++k) sum = fma(weights[k], values[k * kSamples], sum);
    return sum;
  }

  // Sums of a block's rows, over what was found before it.
  __device__ void start_sums(int matrix, int last_step) {
    const int known = found(matrix, first_step_);
    const bool per_sample = args_.per_sample_biases >> matrix & 1;
    const int64_t stride = per_sample ? shape_.width[matrix + 1] : 0;
    for_each(rows(matrix, first_step_, last_step), [&](int row, int sample) {
      const Real bias =
          args_.biases[matrix][clamped(sample) * stride + given_row(args_, matrix, row)];
      value(matrix + 1, place(matrix, row), sample) =
          accumulate(matrix, row, sample, 0, smaller(known, seen(matrix, row)), bias);
    });
  }
  // The rest of a sum.
  __device__ Real finish_sum(int matrix, int row, int sample) const {
    const int end = seen(matrix, row), begin = smaller(found(matrix, first_step_), end);
    const Real sum = value(matrix + 1, place(matrix, row), sample);
    const Real result = accumulate(matrix, row, sample, begin, end, sum);
    const Real* gates = args_.output_gates[matrix];
    if (gates == nullptr) return result;
    return result *
           gates[clamped(sample) * shape_.width[matrix + 1] + given_row(args_, matrix, row)];
  }

  __device__ void store_value(int layer, int unit, int sample, Real result) const {
    value(layer, unit, sample) = result;
    if (is_activated(layer)) result = activate(args_.activation, result);
    if (const Real* gates = args_.input_gates[layer]) {
      const int place = args_.order.place[shape_.first_unit[layer] + unit];
      result *= gates[clamped(sample) * shape_.width[layer] + place];
    }
    active(layer, unit, sample) = result;
  }

  __device__ void find_units(int matrix, int step) const {
    const Rows units = rows(matrix, step, step + 1);
    if (units.begin == units.end) return;
    for_each(units, [&](int unit, int sample) {
      Real result = finish_sum(matrix, unit, sample);
      if (shape_.skips >> matrix & 1) result += value(matrix - 1, unit, sample);
      store_value(matrix + 1, unit, sample, result);
    });
    __syncthreads();
  }

  __device__ void find_dimension(int step) {
    const int matrix = shape_.matrices - 1;
    for_each(rows(matrix, step, step + 1), [&](int row, int sample) {
      value(matrix + 1, place(matrix, row), sample) = finish_sum(matrix, row, sample);
    });
    __syncthreads();
    if (threadIdx.x < kSamples) transform(step, static_cast<int>(threadIdx.x));
    __syncthreads();
  }

  __device__ void transform(int step, int sample) {
    const int dimension = args_.order.place[step];
    const int row = place(shape_.matrices - 1, step * shape_.parameters);
    const Transformed<Real> result =
        invert(args_.transform, args_.y[clamped(sample) * shape_.dim + dimension],
               Parameters<Real>{&value(shape_.matrices, row, sample), kSamples});
    store_value(0, step, sample, result.value);
    if (first_ + sample < args_.batch) {
      args_.x[(first_ + sample) * shape_.dim + dimension] = result.value;
    }
    // Compensated: a density is a sum over many dimensions.
    const Real term = result.log_derivative - log_rest_, sum = log_sum_ + term;
    log_rest_ = (sum - log_sum_) - term;
    log_sum_ = sum;
  }

  const MADEKernelArgs<Real>& args_;
  const MADEShape& shape_;
  Real* activations_;
  int64_t first_;
  int first_step_ = 0;
  Real log_sum_ = 0, log_rest_ = 0;
};

// Registers for two blocks on a multiprocessor: in fp64 for sm_100a 104 instead of 142, none
// spilled.
template <int kSamples, bool kShared, typename Real>
__global__ void __launch_bounds__(kMaxThreads, 2)
    made_inverse(const __grid_constant__ MADEKernelArgs<Real> args) {
  const int64_t per_block = int64_t{args.shape.planes} * kSamples;
  Real* activations =
      kShared ? static_cast<Real*>(dynamic_shared()) : args.activations + blockIdx.x * per_block;
  for (int64_t first = int64_t{blockIdx.x} * kSamples; first < args.batch;
       first += int64_t{gridDim.x} * kSamples) {
    MADEInversion<kSamples, Real>(args, activations, first).run();
  }
}

}  // namespace genssl::cuda
