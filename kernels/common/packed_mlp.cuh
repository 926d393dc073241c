// The engine of the multilayer-perceptron kernels: a block of threads takes a tile of samples
// through a chain of dense layers whose weights pass through shared memory.
//
//          columns (k)
//         +----+----+----+
//   rows  | t0 | t1 | t2 |
//  (out)  +----+----+----+
//         | t3 | t4 | t5 |
//         +----+----+----+
//
// Packing. Every matrix becomes tiles in the order of their use, in the type of the arithmetic, so
// that a tile is one run of memory whatever the widths and the type of the weights. The row stride
// is an odd multiple of 16 bytes: rows side by side lie in different banks.
//
// Stream. A ring of kStages tiles is filled by asynchronous copies while earlier ones are used.
// Where all of the weights fit and are used again, they are copied once instead (resident).
//
// Multiplication. A warp makes [kSamples, 32 outputs]; a lane holds a small tile of them in
// registers and reads four k at a time. For tiles of 8, 16 and 32 samples 6, 10 and 12 vector loads
// of a lane feed 32, 64 and 128 fused multiply-adds, so that shared memory is no bottleneck where
// neighbouring lanes that read the same address share one access.
//
// Each sum is one chain of fused multiply-adds over k ascending from 0, whatever the tiles, so that
// a sample's result depends on neither its place in the batch nor the plan.
#pragma once

#include "kernels/common/cuda.cuh"

namespace genssl::cuda {

constexpr int kWarpOutputs = 32;
constexpr int kMinWarps = 4;
constexpr int kMaxWarps = 8;
constexpr int kMaxThreads = 32 * kMaxWarps;
constexpr int kStages = 3;

template <typename Int>
__host__ __device__ constexpr Int divide_up(Int a, Int b) {
  return (a + b - 1) / b;
}
template <typename T>
__host__ __device__ constexpr T smaller(T a, T b) {
  return a < b ? a : b;
}
template <typename T>
__host__ __device__ constexpr T larger(T a, T b) {
  return a < b ? b : a;
}

// Length of a row in memory: whole vectors of four, an odd number of them.
__host__ __device__ constexpr int padded(int columns) { return 4 * (divide_up(columns, 4) | 1); }

struct MLPShape {
  int input, hidden, output, hidden_layers;
};

struct TileShape {
  int rows, columns;
};

// How one matrix is cut into tiles. Computed on the host: kernels would spend their time on
// divisions.
struct Layer {
  int rows, columns, row_tiles, pieces, row_stride;
  int64_t offset, size;  // in the packing

  Layer() = default;
  Layer(int rows, int columns, const TileShape& tile, int64_t offset)
      : rows(rows),
        columns(columns),
        row_tiles(divide_up(rows, tile.rows)),
        pieces(divide_up(columns, tile.columns)),
        row_stride((pieces - 1) * padded(tile.columns) +
                   padded(columns - (pieces - 1) * tile.columns)),
        offset(offset),
        size(static_cast<int64_t>(rows) * row_stride) {}
};

// Where each weight lies in the packing, in elements; the biases follow.
struct PackedMLP {
  MLPShape shape;
  TileShape tile;
  int slot_size;             // of a whole tile
  Layer first, inner, last;  // inner: the first hidden layer; the others follow it

  PackedMLP() = default;
  PackedMLP(const MLPShape& shape, const TileShape& tile)
      : shape(shape),
        tile(tile),
        slot_size(tile.rows * padded(tile.columns)),
        first(shape.hidden, shape.input, tile, 0),
        inner(shape.hidden, shape.hidden, tile, first.size),
        last(shape.output, shape.hidden, tile, first.size + shape.hidden_layers * inner.size) {}

  __host__ __device__ bool is_last(int layer) const { return layer == shape.hidden_layers + 1; }
  __host__ __device__ const Layer& layer(int index) const {
    return index == 0 ? first : is_last(index) ? last : inner;
  }
  __host__ __device__ int tile_rows(const Layer& layer, int row_tile) const {
    return smaller(tile.rows, layer.rows - row_tile * tile.rows);
  }
  __host__ __device__ int piece_columns(const Layer& layer, int piece) const {
    return smaller(tile.columns, layer.columns - piece * tile.columns);
  }
  __host__ __device__ int64_t tile_offset(int index, int row_tile, int piece) const {
    const Layer& matrix = layer(index);
    const int64_t start =
        matrix.offset + (index > 1 && !is_last(index) ? (index - 1) * inner.size : 0);
    return start + static_cast<int64_t>(row_tile) * tile.rows * matrix.row_stride +
           static_cast<int64_t>(tile_rows(matrix, row_tile)) * piece * padded(tile.columns);
  }
  __host__ __device__ int64_t size() const { return last.offset + last.size; }
  __host__ __device__ int total_rows() const {
    return shape.hidden * (1 + shape.hidden_layers) + shape.output;
  }
};

// Hidden activations are updated in place where one tile of rows covers a layer.
__host__ __device__ inline int hidden_buffers(const MLPShape& shape, const TileShape& tile) {
  return shape.hidden <= tile.rows ? 1 : 2;
}

// Elements of shared memory that a WeightStream takes.
__host__ __device__ inline int64_t weights_size(const PackedMLP& mlp, bool resident) {
  return resident ? mlp.size() : int64_t{kStages} * mlp.slot_size;
}

// Weights as PyTorch holds them, contiguous [out, in]; the hidden layers lie one after another. A
// chain may have no biases.
struct MLPWeights {
  Array first, inner, last;
  Array first_bias, inner_bias, last_bias;
};

template <typename Real>
struct PackArgs {
  PackedMLP mlp;
  MLPWeights weights;
  Real* packed;  // the matrices, then the bias of every row
};

// Row `row` of all matrices one below the other; columns added by the padding become zero.
template <typename Real>
__device__ void pack_row(const PackArgs<Real>& args, int row) {
  const PackedMLP& mlp = args.mlp;
  const MLPWeights& weights = args.weights;
  const int hidden = mlp.shape.hidden, inner_rows = hidden * mlp.shape.hidden_layers;
  const bool is_first = row < hidden, is_last = row >= hidden + inner_rows;
  const Array& source = is_first ? weights.first : is_last ? weights.last : weights.inner;
  const Array& bias = is_first  ? weights.first_bias
                      : is_last ? weights.last_bias
                                : weights.inner_bias;
  const int source_row = is_first ? row : is_last ? row - hidden - inner_rows : row - hidden;
  const int index = is_first ? 0 : is_last ? mlp.shape.hidden_layers + 1 : row / hidden;
  const Layer& layer = mlp.layer(index);
  const int layer_row = is_last ? source_row : row % hidden;
  const int row_tile = layer_row / mlp.tile.rows, tile_row = layer_row % mlp.tile.rows;
  for (int i = threadIdx.x; i < layer.row_stride; i += blockDim.x) {
    const int piece = smaller(i / padded(mlp.tile.columns), layer.pieces - 1);
    const int column = i - piece * padded(mlp.tile.columns);
    const int columns = mlp.piece_columns(layer, piece);
    const int64_t from =
        static_cast<int64_t>(source_row) * layer.columns + piece * mlp.tile.columns + column;
    args.packed[mlp.tile_offset(index, row_tile, piece) + tile_row * padded(columns) + column] =
        column < columns ? load<Real>(source, from) : Real(0);
  }
  if (bias.data != nullptr && threadIdx.x == 0) {
    args.packed[mlp.size() + row] = load<Real>(bias, source_row);
  }
}

// One block per row of both chains.
template <typename Real>
__global__ void pack_mlps(const PackArgs<Real> first, const PackArgs<Real> second) {
  const int row = static_cast<int>(blockIdx.x), rows = first.mlp.total_rows();
  if (row < rows) {
    pack_row(first, row);
  } else {
    pack_row(second, row - rows);
  }
}

// A contiguous part of the network: the layers from `first_layer` on, and of the last one these
// tiles.
struct Section {
  int first_layer, first_row_tile, end_row_tile;
};

// Hands out the tiles of a section in the order of their use, over and over again.
template <typename Real>
class WeightStream {
 public:
  __device__ WeightStream(const PackedMLP& mlp, const Real* packed, Real* shared, bool resident,
                          const Section& section)
      : mlp_(mlp), packed_(packed), shared_(shared), resident_(resident), section_(section) {
    if (resident) {
      copy(shared, packed, mlp.size());
      commit_copies();
      wait_copies<0>();
      __syncthreads();
      return;
    }
    enter(section.first_layer);
    for (int stage = 0; stage < kStages - 1; ++stage) start_copy();
  }

  // The next tile, which the caller names; the one before it is given up.
  __device__ const Real* acquire(int layer, int row_tile, int piece) {
    if (resident_) return shared_ + mlp_.tile_offset(layer, row_tile, piece);
    wait_copies<kStages - 2>();
    __syncthreads();
    start_copy();
    const Real* tile = shared_ + used_slot_ * mlp_.slot_size;
    used_slot_ = (used_slot_ + 1) % kStages;
    return tile;
  }

  __device__ void finish() { wait_copies<0>(); }
  __device__ const PackedMLP& mlp() const { return mlp_; }
  __device__ const Section& section() const { return section_; }

 private:
  __device__ void copy(Real* to, const Real* from, int64_t count) {
    constexpr int kVector = 16 / sizeof(Real);
    for (int64_t i = threadIdx.x * kVector; i < count; i += blockDim.x * kVector) {
      copy_async(to + i, from + i);
    }
  }

  __device__ void start_copy() {
    const Layer& layer = mlp_.layer(layer_);
    const int size = mlp_.tile_rows(layer, row_tile_) * padded(mlp_.piece_columns(layer, piece_));
    copy(shared_ + copied_slot_ * mlp_.slot_size,
         packed_ + mlp_.tile_offset(layer_, row_tile_, piece_), size);
    commit_copies();
    copied_slot_ = (copied_slot_ + 1) % kStages;
    advance(layer);
  }

  __device__ void enter(int layer) {
    layer_ = layer;
    row_tile_ = mlp_.is_last(layer) ? section_.first_row_tile : 0;
    piece_ = 0;
  }

  __device__ void advance(const Layer& layer) {
    if (++piece_ < layer.pieces) return;
    piece_ = 0;
    const bool is_last = mlp_.is_last(layer_);
    if (++row_tile_ < (is_last ? section_.end_row_tile : layer.row_tiles)) return;
    enter(is_last ? section_.first_layer : layer_ + 1);
  }

  const PackedMLP& mlp_;
  const Real* packed_;
  Real* shared_;
  bool resident_;
  Section section_;
  int layer_ = 0, row_tile_ = 0, piece_ = 0;
  int copied_slot_ = 0, used_slot_ = 0;
};

template <typename Real>
struct alignas(4 * sizeof(Real) < 16 ? 4 * sizeof(Real) : 16) Vector4 {
  Real value[4];
};

// The outputs that a thread makes: samples first_sample + i sample_step, outputs likewise.
struct Place {
  int first_sample, sample_step, first_output, output_step;
  bool active;
};

// How the lanes of a warp share [kSamples, 32 outputs]. Lanes that read the same weights are
// neighbours, which lets the hardware serve them with one access.
template <int kSamples>
struct LaneTile {
  static constexpr int unroll = 2;
  static constexpr int samples = kSamples == 8 ? 4 : 8;
  static constexpr int sample_lanes = kSamples / samples;
  static constexpr int output_lanes = 32 / sample_lanes;
  static constexpr int outputs = kWarpOutputs / output_lanes;

  __device__ static Place place(int rows) {
    const int lane = threadIdx.x % 32, first = threadIdx.x / 32 * kWarpOutputs;
    return {lane % sample_lanes, sample_lanes, first + lane / sample_lanes, output_lanes,
            first < rows};
  }
};

// A thread per output, for layers so narrow that a warp's tile would be mostly empty.
template <int kSamples>
struct SingleOutput {
  static constexpr int samples = 1, outputs = 1, unroll = 8;

  __device__ static Place place(int rows) {
    const int sample = threadIdx.x % kSamples, output = threadIdx.x / kSamples;
    return {sample, 0, output, 0, output < rows};
  }
};

// What a lane multiplies at once: four k of its samples and of its weights.
template <typename Lanes, typename Real>
struct Fragment {
  Vector4<Real> input[Lanes::samples], weight[Lanes::outputs];

  __device__ void load(const Real* const (&inputs)[Lanes::samples],
                       const Real* const (&weights)[Lanes::outputs], int k) {
#pragma unroll
    for (int o = 0; o < Lanes::outputs; ++o) {
      weight[o] = *reinterpret_cast<const Vector4<Real>*>(weights[o] + k);
    }
#pragma unroll
    for (int i = 0; i < Lanes::samples; ++i) {
      input[i] = *reinterpret_cast<const Vector4<Real>*>(inputs[i] + k);
    }
  }

  __device__ void multiply_add(Real (&sum)[Lanes::samples][Lanes::outputs]) const {
#pragma unroll
    for (int k = 0; k < 4; ++k) {
#pragma unroll
      for (int i = 0; i < Lanes::samples; ++i) {
#pragma unroll
        for (int o = 0; o < Lanes::outputs; ++o) {
          sum[i][o] = fma(weight[o].value[k], input[i].value[k], sum[i][o]);
        }
      }
    }
  }
};

// Adds the products of one piece. Each fragment is loaded while the one before is multiplied: a
// multiprocessor often has a single warp per scheduler, and nothing else would hide the latency.
template <typename Lanes, typename Real>
__device__ void accumulate(const Real* input, int input_stride, const Real* tile, int rows,
                           int columns, const Place& place,
                           Real (&sum)[Lanes::samples][Lanes::outputs]) {
  const Real *inputs[Lanes::samples], *weights[Lanes::outputs];
#pragma unroll
  for (int i = 0; i < Lanes::samples; ++i) {
    inputs[i] = input + (place.first_sample + i * place.sample_step) * input_stride;
  }
#pragma unroll
  for (int o = 0; o < Lanes::outputs; ++o) {
    const int row = smaller(place.first_output + o * place.output_step, rows - 1);
    weights[o] = tile + row * padded(columns);
  }
  const int last = (columns - 1) / 4 * 4;
  Fragment<Lanes, Real> current;
  current.load(inputs, weights, 0);
#pragma unroll Lanes::unroll
  for (int k = 0; k <= last; k += 4) {
    Fragment<Lanes, Real> next;
    next.load(inputs, weights, smaller(k + 4, last));
    current.multiply_add(sum);
    current = next;
  }
}

// One tile of rows of one layer. The epilogue loads what it needs of each output before the sums,
// so that the latency is hidden, and stores afterwards. With `in_place` the output overwrites the
// input.
template <typename Lanes, typename Real, typename Epilogue>
__device__ void apply_row_tile(WeightStream<Real>& weights, int index, int row_tile,
                               const Real* input, int input_stride, bool in_place,
                               const Epilogue& epilogue) {
  const PackedMLP& mlp = weights.mlp();
  const Layer& layer = mlp.layer(index);
  const int rows = mlp.tile_rows(layer, row_tile), first_row = row_tile * mlp.tile.rows;
  const Place place = Lanes::place(rows);
  Real sum[Lanes::samples][Lanes::outputs] = {};
  typename Epilogue::Output constants[Lanes::outputs];
#pragma unroll
  for (int o = 0; o < Lanes::outputs; ++o) {
    const int output = smaller(place.first_output + o * place.output_step, rows - 1);
    constants[o] = epilogue.load(first_row + output);
  }
  for (int piece = 0; piece < layer.pieces; ++piece) {
    const Real* tile = weights.acquire(index, row_tile, piece);
    if (!place.active) continue;
    accumulate<Lanes>(input + piece * mlp.tile.columns, input_stride, tile, rows,
                      mlp.piece_columns(layer, piece), place, sum);
  }
  if (in_place) __syncthreads();
  if (!place.active) return;
#pragma unroll
  for (int i = 0; i < Lanes::samples; ++i) {
#pragma unroll
    for (int o = 0; o < Lanes::outputs; ++o) {
      const int output = place.first_output + o * place.output_step;
      if (output < rows) {
        epilogue.store(place.first_sample + i * place.sample_step, first_row + output, sum[i][o],
                       constants[o]);
      }
    }
  }
}

// A layer but the last for kSamples samples, input [kSamples, input_stride]; ends with a barrier.
template <int kSamples, typename Real, typename Epilogue>
__device__ void apply_layer(WeightStream<Real>& weights, int index, const Real* input,
                            int input_stride, bool in_place, const Epilogue& epilogue) {
  const int row_tiles = weights.mlp().layer(index).row_tiles;
  for (int row_tile = 0; row_tile < row_tiles; ++row_tile) {
    apply_row_tile<LaneTile<kSamples>>(weights, index, row_tile, input, input_stride, in_place,
                                       epilogue);
  }
  __syncthreads();
}

// The section's part of the last layer, which is often narrow.
template <int kSamples, typename Real, typename Epilogue>
__device__ void apply_last_layer(WeightStream<Real>& weights, const Real* input, int input_stride,
                                 const Epilogue& epilogue) {
  const PackedMLP& mlp = weights.mlp();
  const int index = mlp.shape.hidden_layers + 1;
  for (int row_tile = weights.section().first_row_tile; row_tile < weights.section().end_row_tile;
       ++row_tile) {
    if (mlp.tile_rows(mlp.last, row_tile) * kSamples <= static_cast<int>(blockDim.x)) {
      apply_row_tile<SingleOutput<kSamples>>(weights, index, row_tile, input, input_stride, false,
                                             epilogue);
    } else {
      apply_row_tile<LaneTile<kSamples>>(weights, index, row_tile, input, input_stride, false,
                                         epilogue);
    }
  }
  __syncthreads();
}

template <typename Real>
__device__ Real silu(Real x) {
  return x / (Real(1) + exp(-x));
}

}  // namespace genssl::cuda
