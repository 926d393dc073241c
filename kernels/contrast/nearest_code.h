// The nearest code of every row, without the matrix of distances:
//
//   index_n = argmin_k |x_n - c_k|^2,  distance_n = |x_n - c_index|^2
//
// A block of rows meets the packed codes panel by panel. Every tile of products becomes scores
// |c|^2 / 2 - x.c in registers; per row and lane they leave the lowest score, where it was, and the
// second lowest. A bound of the rounding of two scores says where the lowest is the nearest code.
// Rows pass through up to three searches, each over the rows that the one before left undecided:
//
//   16-bit integers (fp32, bf16 and fp16), at twice the rate of fp32; see integer_products.h
//   the type that is computed with
//   differences summed in double, of the codes whose score is within the bound
//
// The last one sends ties to the lowest index, and takes a NaN for nearest as torch.argmin does. So
// the result is what fp64 gives, whatever the data. Vectors are taken less the mean of the codes:
// distances do not depend on the origin, rounding does. The distance returned comes from the
// differences.
//
// Duplicated codes are taken out first, since they only cost ties; and where an outlier among the
// codes makes the bound loose, it is taken again for codes no farther than the one found.
//
// Measured on one core of an AMD EPYC (Zen 4, AVX-512), 8192 x 64 and 1024 codes of fp32, beside
// 10.2 ms of the fp32 micro-kernel alone:
//   fp32 scores, product stored and read again                                   12.6 ms
//   scores from registers                                                        12.4 ms
//   integers first, but the compiler kept the products in memory                 12.4 ms
//   unrolled, so that they stay in registers                                      8.2 ms
//   near ties decided from what the lanes hold, without another search            7.8 ms
#pragma once

#include <stdint.h>

#include "kernels/common/element_type.h"
#include "kernels/common/isa.h"

namespace genssl {

struct CodePanel {
  double square;   // the largest |c - center|^2, 0 only if all are 0
  float largest;   // the largest magnitude in c - center
  float residual;  // the largest square of what rounding to integers takes off a code
};

template <class T>
struct NearestCodeArgs {
  ElementType type;   // of x
  const void* x;      // [rows, depth]
  const T* codebook;  // [codes, depth]
  int64_t rows, codes, depth;
  // Filled by nearest_code_center, nearest_code_pack and nearest_code_pack_integers.
  T* center;           // [depth]
  T* half_norms;       // [panels, width]: |c - center|^2 / 2, infinite where there is no code
  T* panels;           // [panels, depth, width]: codes less the center
  int32_t* integers;   // [panels, pairs, width]: the same in integers, two a lane
  CodePanel* summary;  // [panels]
  int64_t* indices;    // [rows]
  T* distances;        // [rows]
};

struct NearestCodeSizes {
  int64_t panels, width;  // of the packed codes
  int64_t pairs;          // of integers in a code; 0 without them
  int64_t block_rows;     // rows of one work item
  int64_t workspace;      // scratch memory of one thread, in elements
};

}  // namespace genssl

GENSSL_DECLARE_KERNEL(template <class T> NearestCodeSizes, nearest_code_sizes,
                      (int64_t rows, int64_t codes, int64_t depth))
// The mean of the codes; sums[depth] is scratch memory.
GENSSL_DECLARE_KERNEL(template <class T> void, nearest_code_center,
                      (const NearestCodeArgs<T>& args, double* sums))
// Packs panels [begin, end).
GENSSL_DECLARE_KERNEL(template <class T> void, nearest_code_pack,
                      (const NearestCodeArgs<T>& args, int64_t begin, int64_t end, T* workspace))
// Takes codes that equal an earlier one out of the search, by an infinite norm: they only cost
// ties. table[size] is scratch memory, of a power of two above the number of codes.
GENSSL_DECLARE_KERNEL(template <class T> void, nearest_code_drop_duplicates,
                      (const NearestCodeArgs<T>& args, int64_t* table, int64_t size))
// Rounds panels [begin, end) to integers, once all are packed. Not for double.
GENSSL_DECLARE_KERNEL(template <class T> void, nearest_code_pack_integers,
                      (const NearestCodeArgs<T>& args, int64_t begin, int64_t end))
// Blocks [begin, end) of rows.
GENSSL_DECLARE_KERNEL(template <class T> void, nearest_code,
                      (const NearestCodeArgs<T>& args, int64_t begin, int64_t end, T* workspace))
