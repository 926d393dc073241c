// Activations of compiled networks, in the order of their names in genssl_fast.
#pragma once

namespace genssl {

enum class Activation { relu, leaky_relu, elu, silu, tanh, sigmoid, softplus };

}  // namespace genssl
