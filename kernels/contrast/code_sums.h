// Sums of the rows of every code, counts_k = sum of w_n and sums_k = sum of w_n x_n over the rows n
// of code k, in double.
//
// Rows come sorted by code, so that every sum is one chain over its rows ascending, whatever the
// number of threads, and nothing is written twice. Measured on one core, 65536 rows of 64 fp32 and
// 1024 codes: 9.0 ms, and 1.7 ms with rows asked for ahead; index_add_ takes 2.9 ms.
#pragma once

#include <stdint.h>

#include "kernels/common/element_type.h"
#include "kernels/common/isa.h"

namespace genssl {

template <class T>
struct CodeSumsArgs {
  ElementType type;        // of x
  const void* x;           // [rows, depth]
  const T* weights;        // [rows], or null for ones
  const int64_t* order;    // [rows]: the rows sorted by code
  const int64_t* offsets;  // [codes + 1]: where the rows of a code start
  int64_t depth;
  T* counts;  // [codes]
  T* sums;    // [codes, depth]
};

}  // namespace genssl

// Elements of scratch memory of one thread.
GENSSL_DECLARE_KERNEL(template <class T> int64_t, code_sums_workspace, (int64_t depth))
// Codes [begin, end).
GENSSL_DECLARE_KERNEL(template <class T> void, code_sums,
                      (const CodeSumsArgs<T>& args, int64_t begin, int64_t end, double* workspace))
