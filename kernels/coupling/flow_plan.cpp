// See flow_plan.h for the formula and matmul.h for the tiles.
//
// A thread takes its samples in blocks of at most 8 tiles and carries a block through every layer:
// state, activations and parameters of a block stay in the second level cache, and a panel of
// weights is read once per block. Elements to transform fill registers across the rows of a block,
// so that a coupling of few columns, or a single sample, wastes no more lanes than it must; the
// network's last layer is packed so that their parameters are registers of lanes already. All
// arithmetic of a sample is that of its own lanes and chains, and its log-determinant is summed in
// fp64 over layers and over columns in a fixed order: the bits do not depend on the batch.
//
// Measured with AVX-512 (limit 115 GFLOP/s a core), 8 spline couplings of 16 columns with 2 x 128
// hidden units, 2048 samples on one core:
//   parameters transposed, squares of whole registers    17.1 ms
//   parameters transposed, pieces of 16 bytes            16.5
//   parameters of a lane where the network writes them   15.7, of which products take 12.3 (11.7 at
//                                      the limit), splines 1.5, biases and activations 1.1
// One sample takes 18 us: 1.3 MB of weights come from the third level cache at its 94 GB/s, and
// fetching them ahead costs 1 to 6 us more.
//
// A step of Glow, 12 x 32 x 32 with 64 hidden channels, one image on one core, of which
// convolutions take 282 us (258 at the limit):
//   every column by its index             364 us
//   neighbouring columns together         336
//   the clamp chosen for a whole layer    313
//   rows copied and cleared in place      302
#include "kernels/coupling/flow_plan.h"

#include "kernels/common/philox_vec.h"
#include "kernels/coupling/flow_elements.h"
#include "kernels/coupling/flow_networks.h"
#include "kernels/coupling/flow_plan.h"

namespace genssl::GENSSL_ISA {
namespace {

constexpr double kHalfLog2Pi = 0.91893853320467274178;
constexpr int kMaxMaskedMatrices = 64;

template <class T>
void invert_masked(const FlowPlanArgs<T>& args, const FlowLayer<T>& layer, int64_t first,
                   int64_t rows, FlowScratch<T>& scratch, double* log_abs_det) {
  const int64_t columns = layer.outputs.count;
  MADEInverseArgs<T> inverse{*layer.masked, scratch.hidden, scratch.activations,
                             scratch.log_derivatives};
  const T* biases[kMaxMaskedMatrices];
  if (layer.context_features > 0) {
    run_context(args, layer, first, rows, scratch);
    memcpy(biases, layer.masked->biases, layer.masked->matrices * sizeof biases[0]);
    biases[0] = scratch.context;
    inverse.network.biases = biases;
  }
  for (int64_t r = 0; r < rows; ++r) {
    const T* state = scratch.state + r * args.dim;
    gather(layer.outputs, state, scratch.hidden + r * columns);
  }
  made_inverse(inverse, 0, rows, scratch.layer);
  for (int64_t r = 0; r < rows; ++r) {
    scatter(inverse.x + r * columns, layer.outputs, scratch.state + r * args.dim);
  }
  add_log_derivatives(rows, 1, scratch.log_derivatives, log_abs_det);
}

template <class T>
void apply_coupling(const FlowPlanArgs<T>& args, const FlowLayer<T>& layer, int64_t first,
                    int64_t rows, FlowScratch<T>& scratch, double* log_abs_det) {
  const bool inverse = args.inverse != layer.inverse;
  if (inverse && layer.masked) return invert_masked(args, layer, first, rows, scratch, log_abs_det);
  if (layer.convolutions) {
    convolve_outputs(args, layer, first, rows, scratch);
  } else {
    gather_inputs(args, layer, first, rows, scratch);
    run_network(layer.network, rows, scratch);
  }
  (layer.kind == FlowLayerKind::spline ? apply_spline<T> : apply_affine<T>)(args, layer, inverse,
                                                                            rows, scratch);
  add_log_derivatives(rows, layer.outputs.count, scratch.log_derivatives, log_abs_det);
}

// scratch.outputs = W x + b, or its inverse.
template <class T>
void run_matrix(const FlowPlanArgs<T>& args, const FlowLayer<T>& layer, int64_t first, int64_t rows,
                FlowScratch<T>& scratch) {
  gather_inputs(args, layer, first, rows, scratch);
  for (int64_t r = 0; args.inverse && r < rows; ++r) {
    T* input = scratch.input + r * scratch.stride;
    for (int64_t i = 0; i < layer.inputs.count; ++i) input[i] = input[i] - layer.shift[i];
  }
  run_network(args.inverse ? layer.inverse_network : layer.network, rows, scratch);
}

// A matrix at every pixel.
template <class T>
void apply_channel_linear(const FlowPlanArgs<T>& args, const FlowLayer<T>& layer, int64_t first,
                          int64_t rows, FlowScratch<T>& scratch) {
  const ConvNet<T>& network = args.inverse ? *layer.inverse_convolutions : *layer.convolutions;
  run_convolutions(args, layer, network, first, rows, scratch)
      .for_each_row(network.layers[0].out, [&](const T* row, int64_t image, int64_t c, int64_t y) {
        scatter(row, row_of(layer.outputs, c * network.height + y, network.width),
                scratch.state + image * args.dim);
      });
}

template <class T>
void apply_linear(const FlowPlanArgs<T>& args, const FlowLayer<T>& layer, int64_t first,
                  int64_t rows, FlowScratch<T>& scratch) {
  if (layer.convolutions) return apply_channel_linear(args, layer, first, rows, scratch);
  run_matrix(args, layer, first, rows, scratch);
  for (int64_t r = 0; r < rows; ++r) {
    const T* outputs = scratch.outputs + r * scratch.output_stride;
    scatter(outputs, layer.outputs, scratch.state + r * args.dim);
  }
}

template <class T>
void apply_elementwise(const FlowPlanArgs<T>& args, const FlowLayer<T>& layer, int64_t rows,
                       FlowScratch<T>& scratch) {
  const AffineOptions<T> options{.clamp = Clamp::none};
  for (int64_t i = 0; i < layer.outputs.count; i += Vec<T>::size) {
    const int lanes = static_cast<int>(smaller(Vec<T>::size, layer.outputs.count - i));
    const Vec<T> shift = Vec<T>::load(layer.shift + i, lanes);
    const Vec<T> log_scale = Vec<T>::load(layer.log_scale + i, lanes);
    for (int64_t r = 0; r < rows; ++r) {
      T* state = scratch.state + r * args.dim;
      alignas(kVecBytes) T x[Vec<T>::size] = {};
      for (int lane = 0; lane < lanes; ++lane) x[lane] = state[layer.outputs.index[i + lane]];
      const Vec<T> y = args.inverse
                           ? affine_inverse(options, Vec<T>::load(x), shift, log_scale).value
                           : affine_forward(options, Vec<T>::load(x), shift, log_scale).value;
      for (int lane = 0; lane < lanes; ++lane) state[layer.outputs.index[i + lane]] = y[lane];
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
    T* state = scratch.state + r * dim;
    if (args.x) {
      scatter(args.x + (first + r) * dim, args.columns, state);
    } else {
      for (int64_t i = 0; i < dim; ++i) state[args.columns.index[i]] = scratch.noise[r * dim + i];
    }
  }
}

// log N(z; 0, 1) of every row of noise in the state.
template <class T>
void base_log_prob(const FlowPlanArgs<T>& args, int64_t rows, const T* state, double* log_prob) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* row = state + r * args.dim;
    const double squares = sum_of(args.dim, [&](int64_t i) {
      const double z = row[args.columns.index[i]];
      return z * z;
    });
    log_prob[r] = -0.5 * squares - double(args.dim) * kHalfLog2Pi;
  }
}

template <class T>
void store_results(const FlowPlanArgs<T>& args, int64_t first, int64_t rows, const T* state,
                   const double* log_abs_det, const double* base) {
  const int64_t dim = args.dim;
  for (int64_t r = 0; r < rows; ++r) {
    T* y = args.y + (first + r) * dim;
    if (args.y && args.inverse) memcpy(y, state + r * dim, dim * sizeof(T));
    if (args.y && !args.inverse) gather(args.columns, state + r * dim, y);
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
    if (args.log_prob) base_log_prob(args, rows, scratch.state, base);
  } else {
    memcpy(scratch.state, args.x + first * args.dim, rows * args.dim * sizeof(T));
  }
  for (int64_t i = 0; i < args.num_layers; ++i) {
    const int64_t index = args.inverse ? args.num_layers - 1 - i : i;
    apply_layer(args, args.layers[index], first, rows, scratch, log_abs_det);
  }
  if (args.log_prob && !args.inverse) base_log_prob(args, rows, scratch.state, base);
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
void pack_convolution(const T* weights, int64_t out, int64_t depth, T* packed) {
  pack_kernels(weights, out, depth, packed);
}

template <class T>
int64_t flow_plan_workspace(const FlowPlanArgs<T>& args, int64_t samples) {
  const FlowWidths<T> widths(args);
  return FlowScratch<T>(args, widths, widths.rows(samples), nullptr).size;
}

template <class T>
void flow_plan(const FlowPlanArgs<T>& args, int64_t begin, int64_t end, T* workspace) {
  const FlowWidths<T> widths(args);
  const int64_t most = widths.rows(end - begin);
  FlowScratch<T> scratch(args, widths, most, workspace);
  for (int64_t first = begin; first < end; first += most) {
    run_block(args, first, smaller(most, end - first), scratch);
  }
}

#define GENSSL_INSTANTIATE(T)                                            \
  template int64_t packed_matrix_size<T>(int64_t, int64_t);              \
  template void pack_matrix(const Matrix<T>&, T*);                       \
  template void pack_convolution(const T*, int64_t, int64_t, T*);        \
  template int64_t flow_plan_workspace(const FlowPlanArgs<T>&, int64_t); \
  template void flow_plan(const FlowPlanArgs<T>&, int64_t, int64_t, T*);
GENSSL_INSTANTIATE(float)
GENSSL_INSTANTIATE(double)
#undef GENSSL_INSTANTIATE

}  // namespace genssl::GENSSL_ISA
