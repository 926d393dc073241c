// Affine coupling: y = x e^s + t, or (x + t) e^s with the shift first, on the transformed elements
// of every sample; the others pass through. s is the clamped log-scale of what the network gave, a;
// log|det| is its sum. The inverse is x = (y - t) e^-s, or y e^-s - t.
//
//   none                s = a
//   tanh                s = limit tanh(a / limit)
//   atan                s = limit 0.636 atan(a)
//   sigmoid             e^s = sigmoid(a + offset) + min_scale
//   reciprocal_sigmoid  e^-s = sigmoid(a + offset) + min_scale
//   softplus            e^s = min(softplus(a + offset) + min_scale, limit)
//   zuko                s = a / (1 + |a| / limit)
//   additive            s = 0
//
// One pass over memory, sample by sample, in tiles of kAffineTile elements. A tile of a parameter
// with other strides, or of 16-bit elements, is first brought into a buffer in the first-level
// cache: views of a network's output are read in place. Log-derivatives are summed within a tile in
// lanes and over tiles in fp64, whatever the strides or the threads.
//
// tanh with its log-determinant, 16 elements in the cache on one core with AVX-512: 22.6 ns with a
// call for each tile, 13.6 with the tile's fields in registers (inlined), 11.4 with one division
// and no exponential in tanh, 9.7 with log-scales bounded in a pass of their own; 2.4 ns without a
// scale. 65536x64 on two cores: 3.3, 2.0, 1.7 and 1.5 ms; adding three such tensors takes 1.1 ms.
#pragma once

#include <stdint.h>

#include "kernels/common/element_type.h"
#include "kernels/common/isa.h"

namespace genssl {

constexpr int64_t kAffineTile = 512;

enum class Clamp { none, tanh, atan, sigmoid, reciprocal_sigmoid, softplus, zuko, additive };

template <class T>
struct AffineOptions {
  Clamp clamp;
  T limit, offset, min_scale;
  bool shift_first;
};

// Transformed element o * inner + i of sample b lies at
// data + b sample_stride + o outer_stride + i inner_stride.
struct ParameterView {
  const void* data;
  int64_t sample_stride, outer_stride, inner_stride;
};

struct AffineCouplingArgs {
  ElementType type;
  int64_t elements;    // of a sample
  int64_t begin, end;  // those that are transformed
  int64_t inner;       // of a parameter's view
  const void* x;       // [samples, elements]
  ParameterView shift, log_scale;
  const uint8_t* mask;  // [end - begin], not zero where transformed; null: everywhere
  bool inverse;
  AffineOptions<double> options;
  bool streaming;  // y bypasses the caches: fp32 or fp64, rows of it aligned to 64 bytes
  void* y;
  void* log_abs_det;  // fp64 or fp32 [samples]
};

struct AffineCouplingBackwardArgs {
  AffineCouplingArgs forward;  // without results
  const void* grad_y;
  const void* grad_log_abs_det;
  void* grad_x;
  void* grad_shift;      // [samples, end - begin]
  void* grad_log_scale;  // likewise; not written where the coupling is additive
};

}  // namespace genssl

// Samples [begin, end).
GENSSL_DECLARE_KERNEL(void, affine_coupling,
                      (const AffineCouplingArgs& args, int64_t begin, int64_t end))
GENSSL_DECLARE_KERNEL(void, affine_coupling_backward,
                      (const AffineCouplingBackwardArgs& args, int64_t begin, int64_t end))
