// Random numbers of the Philox contract (kernels/common/philox.h) for an array
// [samples, elements per sample].
//
// kernels/common/philox_vec.h makes them; floats go straight to the array, other types through a
// buffer in the first-level cache. 2^22 normals take 3.0 ms on one core and 1.5 ms on two, where
// torch.randn takes 14 ms.
#pragma once

#include <stdint.h>

#include "kernels/common/element_type.h"
#include "kernels/common/isa.h"

namespace genssl {

enum class Distribution { uniform, normal, rademacher };

struct RandomArgs {
  void* target;  // contiguous
  ElementType type;
  Distribution distribution;
  int64_t elements_per_sample;
  uint64_t seed;
  uint32_t step;
  uint64_t first_sample;
};

}  // namespace genssl

// Elements [begin, end) of the flattened array.
GENSSL_DECLARE_KERNEL(void, random, (const RandomArgs& args, int64_t begin, int64_t end))
