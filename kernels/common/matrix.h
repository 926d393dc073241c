// A matrix of weights and its packing; see matmul.h.
#pragma once

#include <stdint.h>

namespace genssl {

// Weights W[columns, depth]. `panels` is their packing, or null: then each panel is packed as it is
// used.
template <class T>
struct Matrix {
  const T* weights;
  const T* panels;
  int64_t columns, depth;
};

}  // namespace genssl
