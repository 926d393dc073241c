// What an elementwise transform makes of a register of elements.
#pragma once

#include "kernels/common/vec.h"

namespace genssl::GENSSL_ISA {

template <class T>
struct Transformed {
  Vec<T> value, log_derivative;  // log |dy/dx| of the direction that was computed
};

}  // namespace genssl::GENSSL_ISA
