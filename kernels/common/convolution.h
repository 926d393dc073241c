// Convolutions with zero padding, which keep height and width, and their packing; see convolve.h.
#pragma once

#include <stdint.h>

#include "kernels/common/activation.h"

namespace genssl {

constexpr int kMaxKernelSide = 7;

// Kernels K[out, in, side, side], side odd.
template <class T>
struct Convolution {
  const T* packed;
  const T* bias;  // [out]
  int64_t out, in, side;
};

// Convolutions with an activation between any two.
template <class T>
struct ConvNet {
  const Convolution<T>* layers;
  int64_t num_layers;
  int64_t height, width;
  Activation activation;
};

}  // namespace genssl
