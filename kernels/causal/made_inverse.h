// Inverse of a masked autoregressive transform: y[B, D] -> x[B, D] and log|det dx/dy| [B].
//
//   v_0 = x,  v_{l+1} = o_l (W_l (i_l a_l(v_l)) + b_l) (+ v_{l-1}),
//   x_d = transform^-1(y_d; rows d of v_last)
//
// Gates i_l [B, in] and o_l [B, out] are optional. With the slopes of activations for gates, the
// same recursion solves for derivatives.
//
// A unit of degree d sees units of degree <= d of the layer before, the parameters of dimension d
// units of degree < d. So in the order of degrees each unit is computed once, when all that it sees
// is known, and every weight is used once: the work of one forward pass.
//
// A step is one degree: first the dimensions of that degree, then the hidden units, layer by layer.
// In every layer units lie in the order of degrees, and a step's units are a range.
#pragma once

#include <stdint.h>

#include "kernels/common/activation.h"
#include "kernels/common/isa.h"
#include "kernels/coupling/affine_coupling.h"
#include "kernels/coupling/rational_quadratic_spline.h"

namespace genssl {

// What becomes of a dimension, given its parameters.
template <class T>
struct ElementwiseOptions {
  bool is_spline, has_scale, scale_first;
  AffineOptions<T> affine;
  SplineOptions<T> spline;
};

// Layer 0 is the input, matrix l leads from layer l to l + 1, and the last layer has the
// parameters: its order and ends are those of the dimensions, with `parameters` rows each.
template <class T>
struct MADENetwork {
  int64_t dim, parameters, matrices, blocks;
  const int64_t* width;          // [matrices + 1]: units of a layer
  const int64_t* offset;         // [matrices + 2]: units of the layers before
  const int64_t* const* order;   // [matrices + 1][units]: the given place of the i-th unit
  const int64_t* const* end;     // [matrices + 1][steps + 1]: units before a step
  const int64_t* block_step;     // [blocks + 1]: the first step of a block
  const int64_t* packed_offset;  // [matrices, blocks]: where a block's weights start in `packed`
  const T* const* weights;       // [matrices][out, in] as given
  const T* const* biases;        // [matrices][out] or [B, out] as given
  const int64_t* bias_stride;    // [matrices]: 0 or out
  const T* const* input_gates;   // [matrices][B, in] as given, or null
  const T* const* output_gates;  // [matrices][B, out] as given, or null
  int64_t activated, skips;      // a bit for every matrix
  T* packed;
  Activation activation;
  ElementwiseOptions<T> transform;
};

template <class T>
struct MADEInverseArgs {
  MADENetwork<T> network;
  const T* y;      // [B, D]
  T* x;            // [B, D]
  T* log_abs_det;  // [B]
};

}  // namespace genssl

// Samples of one register.
GENSSL_DECLARE_KERNEL(template <class T> int64_t, made_inverse_lanes, ())
// Scratch memory of one thread, in elements.
GENSSL_DECLARE_KERNEL(template <class T> int64_t, made_inverse_workspace,
                      (const MADENetwork<T>& network))
// Packs items [begin, end) of matrices * blocks, matrix by matrix.
GENSSL_DECLARE_KERNEL(template <class T> void, made_inverse_pack,
                      (const MADENetwork<T>& network, int64_t begin, int64_t end))
// Samples [begin, end) of the batch.
GENSSL_DECLARE_KERNEL(template <class T> void, made_inverse,
                      (const MADEInverseArgs<T>& args, int64_t begin, int64_t end, T* workspace))
