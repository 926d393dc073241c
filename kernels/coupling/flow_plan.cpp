// See flow_plan.h for the formula and matmul.h for the tiles.
//
// A thread takes its samples in blocks of at most 8 tiles and carries a block through every layer:
// state, activations and parameters of a block stay in the second level cache, and a panel of
// weights is read once per block. Elements to transform fill registers across the rows of a block,
// so that a coupling of few columns, or a single sample, wastes no more lanes than it must; the
// network's last layer is packed so that their parameters are registers of lanes already. All
// arithmetic of a sample is that of its own lanes and chains, and its log-determinant is summed in
// fp64 over layers and columns ascending: the bits do not depend on the batch.
//
// Measured with AVX-512 (limit 115 GFLOP/s a core), 8 spline couplings of 16 columns with 2 x 128
// hidden units, 2048 samples on one core:
//   parameters transposed, squares of whole registers    17.1 ms
//   parameters transposed, pieces of 16 bytes            16.5
//   parameters of a lane where the network writes them   15.7, of which products take 12.3 (11.7 at
//                                      the limit), splines 1.5, biases and activations 1.1
// One sample takes 18 us: 1.3 MB of weights come from the third level cache at its 94 GB/s, and
// fetching them ahead costs 1 to 6 us more.
#include "kernels/coupling/flow_plan.h"

#include "kernels/common/activation_vec.h"
#include "kernels/common/linear.h"
#include "kernels/common/philox_vec.h"
#include "kernels/coupling/affine_vec.h"
#include "kernels/coupling/lane_parameters.h"
#include "kernels/coupling/spline_vec.h"

namespace genssl::GENSSL_ISA {
namespace {

constexpr double kHalfLog2Pi = 0.91893853320467274178;
constexpr int kMaxParameters = 3 * kMaxSplineBins + 1;
constexpr int kMaxMaskedMatrices = 64;

template <class T>
GENSSL_INLINE int64_t parameters_per_element(const FlowLayer<T>& layer) {
  if (layer.kind == FlowLayerKind::spline) return num_parameters(layer.spline);
  return layer.network.matrices[layer.network.num_layers - 1].columns / layer.num_outputs;
}

// The widest rows that the flow's networks read and keep, and those that they write.
template <class T>
struct FlowWidths {
  int64_t activations = 1, outputs = 1;

  GENSSL_INLINE explicit FlowWidths(const FlowPlanArgs<T>& args) {
    for (int64_t i = 0; i < args.num_layers; ++i) {
      include(args.layers[i].network);
      include(args.layers[i].inverse_network);
      include(args.layers[i].context_network);
    }
  }
  GENSSL_INLINE void include(const Perceptron<T>& network) {
    for (int64_t i = 0; i < network.num_layers; ++i) {
      activations = larger(activations, network.matrices[i].depth);
    }
    if (network.num_layers == 0) return;
    outputs = larger(outputs, network.matrices[network.num_layers - 1].columns);
  }
};

// Scratch memory of one thread, cut into its parts.
template <class T>
struct FlowScratch {
  T *state, *input, *hidden, *activations, *next, *outputs, *log_derivatives, *masked;
  float* noise;
  int64_t stride, output_stride, size;

  GENSSL_INLINE FlowScratch(const FlowPlanArgs<T>& args, T* workspace) {
    const FlowWidths<T> widths(args);
    const int64_t state_size = kMaxBlockRows * args.dim + Vec<T>::size;
    stride = row_stride<T>(widths.activations);
    output_stride = row_stride<T>(widths.outputs);
    state = workspace;
    log_derivatives = state + state_size;
    noise = reinterpret_cast<float*>(log_derivatives + state_size);
    input = log_derivatives + 2 * state_size;
    hidden = input + kMaxBlockRows * stride;
    activations = hidden + kMaxBlockRows * stride;
    next = activations + kMaxBlockRows * stride;
    outputs = next + kMaxBlockRows * stride;
    masked = outputs + kMaxBlockRows * output_stride;
    size = masked + larger(Vec<T>::size, masked_size(args)) - workspace;
  }
  static int64_t masked_size(const FlowPlanArgs<T>& args) {
    int64_t most = 0;
    for (int64_t i = 0; i < args.num_layers; ++i) {
      const MADENetwork<T>* network = args.layers[i].masked;
      if (network) most = larger(most, made_inverse_workspace(*network));
    }
    return most;
  }
};

// One layer of a network for a block of rows. Arrays of rows lie `stride` apart.
template <class T>
struct RowsOfLayer {
  const Matrix<T>& matrix;
  const T* bias;
  int64_t rows, stride;
};

// target = act(source W^T + b).
template <Activation activation, class T>
inline void activated_layer(const RowsOfLayer<T>& layer, const T* source, T* target) {
  for_each_sum<T>(source, layer.stride, layer.rows, layer.matrix, layer.bias, nullptr,
                  [&](int64_t r, int64_t n, int64_t, Vec<T> sum) {
                    activate<activation>(sum).store(target + r * layer.stride + n);
                  });
}

// hidden <- source W^T + b, or that added to it; target = act(hidden).
template <Activation activation, bool add, class T>
inline void residual_layer(const RowsOfLayer<T>& layer, const T* source, T* hidden, T* target) {
  for_each_sum<T>(source, layer.stride, layer.rows, layer.matrix, layer.bias, nullptr,
                  [&](int64_t r, int64_t n, int64_t, Vec<T> sum) {
                    T* kept = hidden + r * layer.stride + n;
                    if (add) sum = Vec<T>::load(kept) + sum;
                    sum.store(kept);
                    activate<activation>(sum).store(target + r * layer.stride + n);
                  });
}

// All layers but the last, of rows that lie in scratch.input; returns what the last one reads.
template <Activation activation, class T>
inline const T* hidden_layers(const Perceptron<T>& network, int64_t rows, FlowScratch<T>& scratch) {
  const auto layer = [&](int64_t i) {
    return RowsOfLayer<T>{network.matrices[i], network.biases[i], rows, scratch.stride};
  };
  const int64_t last = network.num_layers - 1;
  if (last == 0) return scratch.input;
  if (!network.residual) {
    const T* source = scratch.input;
    T *target = scratch.activations, *other = scratch.next;
    for (int64_t i = 0; i < last; ++i) {
      activated_layer<activation>(layer(i), source, target);
      source = target;
      target = other;
      other = const_cast<T*>(source);
    }
    return source;
  }
  T *hidden = scratch.hidden, *activations = scratch.activations, *next = scratch.next;
  residual_layer<activation, false>(layer(0), scratch.input, hidden, activations);
  for (int64_t i = 1; i < last; i += 2) {
    activated_layer<activation>(layer(i), activations, next);
    residual_layer<activation, true>(layer(i + 1), next, hidden, activations);
  }
  return hidden;
}

// scratch.outputs = network(scratch.input).
template <class T>
void run_network(const Perceptron<T>& network, int64_t rows, FlowScratch<T>& scratch) {
  const T* source = nullptr;
  with_activation(network.activation, [&]<Activation activation>() {
    source = hidden_layers<activation>(network, rows, scratch);
  });
  const int64_t last = network.num_layers - 1;
  linear<T>(source, scratch.stride, rows, network.matrices[last], network.biases[last],
            scratch.outputs, scratch.output_stride, nullptr);
}

template <class T>
GENSSL_INLINE void copy_context(const FlowPlanArgs<T>& args, int64_t features, int64_t sample,
                                T* target) {
  if (features == 0) return;
  memcpy(target, args.context + sample * args.context_stride, features * sizeof(T));
}

// The layer's columns of the state, then the context.
template <class T>
void gather_inputs(const FlowPlanArgs<T>& args, const FlowLayer<T>& layer, int64_t first,
                   int64_t rows, FlowScratch<T>& scratch) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* state = scratch.state + r * args.dim;
    T* input = scratch.input + r * scratch.stride;
    for (int64_t i = 0; i < layer.num_inputs; ++i) input[i] = state[layer.inputs[i]];
    copy_context(args, layer.context_features, first + r, input + layer.num_inputs);
  }
}

// A register of elements, in the order of rows and then of output columns: element `column` of row
// `row` first.
struct ElementCursor {
  int64_t row, column;

  GENSSL_INLINE void advance(int64_t columns) {
    if (++column == columns) {
      column = 0;
      ++row;
    }
  }
};

// Transforms the output columns of every row by the parameters in scratch.outputs; `transform` is
// given a register of elements and their parameters.
template <class T, class Transform>
void transform_elements(const FlowPlanArgs<T>& args, const FlowLayer<T>& layer, int64_t rows,
                        FlowScratch<T>& scratch, const Transform& transform) {
  constexpr int size = Vec<T>::size;
  const int64_t columns = layer.num_outputs, count = parameters_per_element(layer);
  alignas(kVecBytes) T parameters[kMaxParameters * size];
  ElementCursor cursor{0, 0};
  for (int64_t first = 0; first < rows * columns; first += size) {
    const int lanes = static_cast<int>(smaller(size, rows * columns - first));
    T* elements[size];
    alignas(kVecBytes) T x[size] = {};
    LaneRun<T> runs[size];
    int num_runs = 0;
    for (int lane = 0; lane < lanes; ++lane) {
      if (lane == 0 || cursor.column == 0) {
        const T* row = scratch.outputs + cursor.row * scratch.output_stride;
        runs[num_runs++] = LaneRun<T>(row + cursor.column, lane);
      }
      elements[lane] = scratch.state + cursor.row * args.dim + layer.outputs[cursor.column];
      x[lane] = *elements[lane];
      cursor.advance(columns);
    }
    load_parameters(runs, num_runs, columns, count, parameters);
    const Transformed<T> result = transform(Vec<T>::load(x), parameters);
    for (int lane = 0; lane < lanes; ++lane) *elements[lane] = result.value[lane];
    result.log_derivative.store(scratch.log_derivatives + first);
  }
}

template <class T>
void add_log_derivatives(int64_t rows, int64_t columns, const T* log_derivatives,
                         double* log_abs_det) {
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < columns; ++i) log_abs_det[r] += log_derivatives[r * columns + i];
  }
}

template <class T>
void apply_affine(const FlowPlanArgs<T>& args, const FlowLayer<T>& layer, bool inverse,
                  int64_t rows, FlowScratch<T>& scratch) {
  const bool additive = parameters_per_element(layer) == 1;
  transform_elements(args, layer, rows, scratch, [&](Vec<T> x, const T* parameters) {
    const Vec<T> shift = Vec<T>::load(parameters);
    const Vec<T> log_scale = additive ? Vec<T>(T(0)) : Vec<T>::load(parameters + Vec<T>::size);
    return inverse ? affine_inverse(layer.affine, x, shift, log_scale)
                   : affine_forward(layer.affine, x, shift, log_scale);
  });
}

template <class T>
void apply_spline(const FlowPlanArgs<T>& args, const FlowLayer<T>& layer, bool inverse,
                  int64_t rows, FlowScratch<T>& scratch) {
  transform_elements(args, layer, rows, scratch, [&](Vec<T> x, const T* parameters) {
    return inverse ? spline_inverse(layer.spline, x, parameters)
                   : spline_forward(layer.spline, x, parameters);
  });
}

// scratch.outputs[rows, units] = the biases of a masked network's first layer and the context's
// part of them.
template <class T>
void context_biases(const FlowPlanArgs<T>& args, const FlowLayer<T>& layer, int64_t first,
                    int64_t rows, FlowScratch<T>& scratch) {
  const Perceptron<T>& network = layer.context_network;
  for (int64_t r = 0; r < rows; ++r) {
    copy_context(args, layer.context_features, first + r, scratch.input + r * scratch.stride);
  }
  linear<T>(scratch.input, scratch.stride, rows, network.matrices[0], network.biases[0],
            scratch.outputs, network.matrices[0].columns, nullptr);
}

template <class T>
void invert_masked(const FlowPlanArgs<T>& args, const FlowLayer<T>& layer, int64_t first,
                   int64_t rows, FlowScratch<T>& scratch, double* log_abs_det) {
  const int64_t columns = layer.num_outputs;
  MADEInverseArgs<T> inverse{*layer.masked, scratch.hidden, scratch.activations,
                             scratch.log_derivatives};
  const T* biases[kMaxMaskedMatrices];
  if (layer.context_features > 0) {
    context_biases(args, layer, first, rows, scratch);
    memcpy(biases, layer.masked->biases, layer.masked->matrices * sizeof biases[0]);
    biases[0] = scratch.outputs;
    inverse.network.biases = biases;
  }
  for (int64_t r = 0; r < rows; ++r) {
    const T* state = scratch.state + r * args.dim;
    for (int64_t i = 0; i < columns; ++i) scratch.hidden[r * columns + i] = state[layer.outputs[i]];
  }
  made_inverse(inverse, 0, rows, scratch.masked);
  for (int64_t r = 0; r < rows; ++r) {
    T* state = scratch.state + r * args.dim;
    for (int64_t i = 0; i < columns; ++i) state[layer.outputs[i]] = inverse.x[r * columns + i];
  }
  add_log_derivatives(rows, 1, scratch.log_derivatives, log_abs_det);
}

template <class T>
void apply_coupling(const FlowPlanArgs<T>& args, const FlowLayer<T>& layer, int64_t first,
                    int64_t rows, FlowScratch<T>& scratch, double* log_abs_det) {
  const bool inverse = args.inverse != layer.inverse;
  if (inverse && layer.masked) return invert_masked(args, layer, first, rows, scratch, log_abs_det);
  gather_inputs(args, layer, first, rows, scratch);
  run_network(layer.network, rows, scratch);
  (layer.kind == FlowLayerKind::spline ? apply_spline<T> : apply_affine<T>)(args, layer, inverse,
                                                                            rows, scratch);
  add_log_derivatives(rows, layer.num_outputs, scratch.log_derivatives, log_abs_det);
}

template <class T>
void apply_linear(const FlowPlanArgs<T>& args, const FlowLayer<T>& layer, int64_t first,
                  int64_t rows, FlowScratch<T>& scratch) {
  gather_inputs(args, layer, first, rows, scratch);
  for (int64_t r = 0; args.inverse && r < rows; ++r) {
    T* input = scratch.input + r * scratch.stride;
    for (int64_t i = 0; i < layer.num_inputs; ++i) input[i] = input[i] - layer.shift[i];
  }
  run_network(args.inverse ? layer.inverse_network : layer.network, rows, scratch);
  for (int64_t r = 0; r < rows; ++r) {
    T* state = scratch.state + r * args.dim;
    const T* outputs = scratch.outputs + r * scratch.output_stride;
    for (int64_t i = 0; i < layer.num_outputs; ++i) state[layer.outputs[i]] = outputs[i];
  }
}

template <class T>
void apply_elementwise(const FlowPlanArgs<T>& args, const FlowLayer<T>& layer, int64_t rows,
                       FlowScratch<T>& scratch) {
  const AffineOptions<T> options{.clamp = Clamp::none};
  for (int64_t i = 0; i < layer.num_outputs; i += Vec<T>::size) {
    const int lanes = static_cast<int>(smaller(Vec<T>::size, layer.num_outputs - i));
    const Vec<T> shift = Vec<T>::load(layer.shift + i, lanes);
    const Vec<T> log_scale = Vec<T>::load(layer.log_scale + i, lanes);
    for (int64_t r = 0; r < rows; ++r) {
      T* state = scratch.state + r * args.dim;
      alignas(kVecBytes) T x[Vec<T>::size] = {};
      for (int lane = 0; lane < lanes; ++lane) x[lane] = state[layer.outputs[i + lane]];
      const Vec<T> y = args.inverse
                           ? affine_inverse(options, Vec<T>::load(x), shift, log_scale).value
                           : affine_forward(options, Vec<T>::load(x), shift, log_scale).value;
      for (int lane = 0; lane < lanes; ++lane) state[layer.outputs[i + lane]] = y[lane];
    }
  }
}

template <class T>
void apply_layer(const FlowPlanArgs<T>& args, const FlowLayer<T>& layer, int64_t first,
                 int64_t rows, FlowScratch<T>& scratch, double* log_abs_det) {
  if (layer.kind == FlowLayerKind::affine || layer.kind == FlowLayerKind::spline) {
    return apply_coupling(args, layer, first, rows, scratch, log_abs_det);
  }
  if (layer.kind == FlowLayerKind::linear) apply_linear(args, layer, first, rows, scratch);
  if (layer.kind == FlowLayerKind::elementwise) apply_elementwise(args, layer, rows, scratch);
  for (int64_t r = 0; r < rows; ++r) {
    log_abs_det[r] += args.inverse ? -layer.log_abs_det : layer.log_abs_det;
  }
}

// Noise in its columns of the state: given, or drawn.
template <class T>
void load_noise(const FlowPlanArgs<T>& args, int64_t first, int64_t rows, FlowScratch<T>& scratch) {
  const int64_t dim = args.dim;
  if (args.x == nullptr) {
    fill<Normal>(args.seed, args.step, args.first_sample + static_cast<uint64_t>(first), dim, 0,
                 rows * dim, scratch.noise);
  }
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < dim; ++i) {
      scratch.state[r * dim + args.columns[i]] =
          args.x ? args.x[(first + r) * dim + i] : T(scratch.noise[r * dim + i]);
    }
  }
}

// log N(z; 0, 1) of every row of noise in the state.
template <class T>
void base_log_prob(const FlowPlanArgs<T>& args, int64_t rows, const T* state, double* log_prob) {
  for (int64_t r = 0; r < rows; ++r) {
    double squares = 0;
    for (int64_t i = 0; i < args.dim; ++i) {
      const double z = state[r * args.dim + args.columns[i]];
      squares += z * z;
    }
    log_prob[r] = -0.5 * squares - double(args.dim) * kHalfLog2Pi;
  }
}

template <class T>
void store_results(const FlowPlanArgs<T>& args, int64_t first, int64_t rows, const T* state,
                   const double* log_abs_det, const double* base) {
  const int64_t dim = args.dim;
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; args.y && i < dim; ++i) {
      args.y[(first + r) * dim + i] = state[r * dim + (args.inverse ? i : args.columns[i])];
    }
    if (args.log_abs_det) args.log_abs_det[first + r] = T(log_abs_det[r]);
    if (args.log_prob == nullptr) continue;
    args.log_prob[first + r] = T(base[r] + (args.inverse ? -log_abs_det[r] : log_abs_det[r]));
  }
}

template <class T>
void run_block(const FlowPlanArgs<T>& args, int64_t first, int64_t rows, FlowScratch<T>& scratch) {
  double log_abs_det[kMaxBlockRows] = {}, base[kMaxBlockRows];
  if (args.inverse) {
    load_noise(args, first, rows, scratch);
    base_log_prob(args, rows, scratch.state, base);
  } else {
    memcpy(scratch.state, args.x + first * args.dim, rows * args.dim * sizeof(T));
  }
  for (int64_t i = 0; i < args.num_layers; ++i) {
    const int64_t index = args.inverse ? args.num_layers - 1 - i : i;
    apply_layer(args, args.layers[index], first, rows, scratch, log_abs_det);
  }
  if (!args.inverse) base_log_prob(args, rows, scratch.state, base);
  store_results(args, first, rows, scratch.state, log_abs_det, base);
}

}  // namespace

template <class T>
int64_t packed_matrix_size(int64_t columns, int64_t depth) {
  return packed_size<T>(columns, depth);
}

template <class T>
void pack_matrix(const Matrix<T>& matrix, T* panels) {
  for (int64_t panel = 0; panel < count_panels<T>(matrix.columns); ++panel) {
    pack_panel(matrix, panel, panels + panel * kPanelColumns<T> * matrix.depth);
  }
}

template <class T>
int64_t flow_plan_workspace(const FlowPlanArgs<T>& args) {
  return FlowScratch<T>(args, nullptr).size;
}

template <class T>
void flow_plan(const FlowPlanArgs<T>& args, int64_t begin, int64_t end, T* workspace) {
  FlowScratch<T> scratch(args, workspace);
  const int64_t most = block_rows<T>(FlowWidths<T>(args).activations, end - begin);
  for (int64_t first = begin; first < end; first += most) {
    run_block(args, first, smaller(most, end - first), scratch);
  }
}

#define GENSSL_INSTANTIATE(T)                                   \
  template int64_t packed_matrix_size<T>(int64_t, int64_t);     \
  template void pack_matrix(const Matrix<T>&, T*);              \
  template int64_t flow_plan_workspace(const FlowPlanArgs<T>&); \
  template void flow_plan(const FlowPlanArgs<T>&, int64_t, int64_t, T*);
GENSSL_INSTANTIATE(float)
GENSSL_INSTANTIATE(double)
#undef GENSSL_INSTANTIATE

}  // namespace genssl::GENSSL_ISA
