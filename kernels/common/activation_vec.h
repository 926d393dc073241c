// Activations of a register.
#pragma once

#include "kernels/common/activation.h"
#include "kernels/common/math.h"

namespace genssl::GENSSL_ISA {

template <Activation activation, class T>
GENSSL_INLINE Vec<T> activate(Vec<T> x) {
  const Vec<T> zero(T(0));
  if constexpr (activation == Activation::relu) return max(x, zero);
  if constexpr (activation == Activation::leaky_relu) return max(x, x * Vec<T>(T(0.01)));
  if constexpr (activation == Activation::elu) return select(x > zero, x, expm1(min(x, zero)));
  if constexpr (activation == Activation::silu) return silu(x);
  if constexpr (activation == Activation::tanh) return tanh(x);
  if constexpr (activation == Activation::sigmoid) return sigmoid(x);
  if constexpr (activation == Activation::softplus) return softplus(x);
}

// Calls body.template operator()<activation>() with the activation as a constant.
template <class Body>
GENSSL_INLINE void with_activation(Activation activation, const Body& body) {
  switch (activation) {
    case Activation::relu:
      return body.template operator()<Activation::relu>();
    case Activation::leaky_relu:
      return body.template operator()<Activation::leaky_relu>();
    case Activation::elu:
      return body.template operator()<Activation::elu>();
    case Activation::silu:
      return body.template operator()<Activation::silu>();
    case Activation::tanh:
      return body.template operator()<Activation::tanh>();
    case Activation::sigmoid:
      return body.template operator()<Activation::sigmoid>();
    case Activation::softplus:
      return body.template operator()<Activation::softplus>();
  }
}

}  // namespace genssl::GENSSL_ISA
