// A whole flow: data x[B, dim] to noise z[B, dim], or back, through all its layers.
//
//   coupling     y_T = transform(x_T; network(x_I, context)), the other columns stay
//   masked       a coupling that reads and transforms every column; its inverse is that of
//                made_inverse.h, whose first bias has the context's product added
//   linear       y = W x + b, or at every pixel of an image
//   elementwise  y = x e^s + t
//
// The network is a perceptron, or convolutions of an image whose channels lie one after the other.
// A permutation of columns is no layer: those that follow it name other columns of the same state.
// The base is a standard normal: log p(x) = -|z|^2 / 2 - dim log(2 pi) / 2 + log |dz/dx|.
#pragma once

#include <stdint.h>

#include "kernels/causal/made_inverse.h"
#include "kernels/common/activation.h"
#include "kernels/common/convolution.h"
#include "kernels/common/isa.h"
#include "kernels/common/matrix.h"
#include "kernels/coupling/affine_coupling.h"
#include "kernels/coupling/rational_quadratic_spline.h"

namespace genssl {

// Layers with an activation between any two; or a residual network, h = W x + b, then for each pair
// of layers h <- h + W2 act(W1 act(h) + b1) + b2, and a last layer of h.
template <class T>
struct Perceptron {
  const Matrix<T>* matrices;  // [num_layers], packed
  const T* const* biases;     // [num_layers]
  int64_t num_layers;
  Activation activation;
  bool residual;
};

// Columns of the state, in runs of neighbours: index[i] = index[i - 1] + 1 where i % run > 0.
struct FlowColumns {
  const int64_t* index;
  int64_t count, run;
};

enum class FlowLayerKind { affine, spline, linear, elementwise };

template <class T>
struct FlowLayer {
  FlowLayerKind kind;
  bool inverse;  // a coupling whose transform is inverted on the way from data to noise
  FlowColumns inputs, outputs;  // columns that the network reads, and those that change
  int64_t context_features;     // that the network reads, after its columns
  Perceptron<T> network;        // of a coupling: parameters [P, outputs]; of a linear layer: itself
  Perceptron<T> inverse_network;           // of a linear layer, without its bias
  const MADENetwork<T>* masked;            // of a masked coupling, for its inverse; else null
  const ConvNet<T>* convolutions;          // what `network` is instead; else null
  const ConvNet<T>* inverse_convolutions;  // of a linear layer at pixels, with its own bias
  // One layer, of a context that is added to the first layer of a masked coupling, which also has
  // its biases, or of convolutions.
  Perceptron<T> context_network;
  AffineOptions<T> affine;  // P = 2: shift, log-scale
  SplineOptions<T> spline;
  const T *shift, *log_scale;  // [outputs]: of an elementwise layer; the bias of a linear one
  double log_abs_det;          // of a linear or elementwise layer
};

template <class T>
struct FlowPlanArgs {
  const FlowLayer<T>* layers;  // from data to noise
  int64_t num_layers, dim;
  FlowColumns columns;  // [dim]: where the state keeps column i of the noise
  bool inverse;         // from noise to data
  const T* x;           // [B, dim]; null: noise is drawn
  const T* context;     // [B, context_stride]; a stride of 0 shares one row
  int64_t context_stride;
  uint64_t seed;
  uint32_t step;
  uint64_t first_sample;
  T* y;            // [B, dim] or null
  T* log_abs_det;  // [B] or null: of the direction that is computed
  T* log_prob;     // [B] or null: of the data
};

}  // namespace genssl

// Elements of a matrix' packing, and the packing itself.
GENSSL_DECLARE_KERNEL(template <class T> int64_t, packed_matrix_size,
                      (int64_t columns, int64_t depth))
GENSSL_DECLARE_KERNEL(template <class T> void, pack_matrix, (const Matrix<T>& matrix, T* panels))
// The packing of kernels [out, depth], which takes as much memory.
GENSSL_DECLARE_KERNEL(template <class T> void, pack_convolution,
                      (const T* weights, int64_t out, int64_t depth, T* packed))
// Scratch memory of one thread for a range of so many samples, in elements.
GENSSL_DECLARE_KERNEL(template <class T> int64_t, flow_plan_workspace,
                      (const FlowPlanArgs<T>& args, int64_t samples))
// The flow for samples [begin, end).
GENSSL_DECLARE_KERNEL(template <class T> void, flow_plan,
                      (const FlowPlanArgs<T>& args, int64_t begin, int64_t end, T* workspace))
