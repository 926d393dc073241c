// Exponential moving average in fp32 of parameters in 16 bits: a += weight (p - a), in one pass.
//
// PyTorch has no such pass: lerp refuses mixed types, and a product with the decay followed by a
// sum of both types reads and writes the averages twice. With one type, _foreach_lerp_ runs at the
// memory's speed and is left to PyTorch.
#pragma once

#include <stdint.h>

#include "kernels/common/element_type.h"
#include "kernels/common/isa.h"

namespace genssl {

struct EmaUpdateArgs {
  ElementType type;  // of the parameters
  float* averages;
  const void* parameters;
  float weight;
};

}  // namespace genssl

// Elements [begin, end).
GENSSL_DECLARE_KERNEL(void, ema_update, (const EmaUpdateArgs& args, int64_t begin, int64_t end))
