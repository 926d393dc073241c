// Sinkhorn's normalisation of exp(logits / epsilon) in the log domain, with vectors only.
//
//   y_bk = (l_bk - m_k) log2(e) / epsilon + r_k      m_k = max_b l_bk, r_k the potential of column
//   k
//   1. r_k = -log2 sum_b 2^(y_bk - r_k)              columns sum to 1
//   2. s_b = sum_k 2^y_bk, c_k = sum_b 2^y_bk / s_b  rows sum to 1; the sums of their columns
//   3. r_k -= log2 (c_k K / B)                       columns sum alike again; back to 2
//   4. Q_bk = 2^y_bk / s_b                           after the last iteration
//
// So n iterations read the logits n + 1 times and write Q once: a row gives its own normaliser and,
// while it lies in the nearest cache, its part of the next column sums. The difference to the
// largest entry of the column comes first, because it is exact where it matters: neither large
// logits nor a small epsilon cost digits.
//
// No logarithm sees 0. Take potentials without the factor K / B, which cancels, and only keeps them
// from drifting: after 1. or 3. each column of B entries 2^y <= 1 (times the last 1 / s_b) sums to
// 1, so one of them is at least 1 / B and no row of K sums to more than K: after 2. that entry is
// at least 1 / (B K), and c_k with it. A row far from all others, whose powers vanish or overflow,
// is computed relative to its own maximum.
//
// 4096 x 3000 in fp32, 3 iterations: 246 MB of traffic, where reading once and writing once are 98.
// A pass of sums that took one row at a time needed 6.9 ms of one core; four rows, which share the
// loads of their columns, and 2^x in nine operations need 4.4 ms. Memory alone takes about 2.
//
// Column sums are those of blocks of kSinkhornRows rows, added in their order, so that the result
// does not depend on the number of threads. Passes over the rows alternate their direction: what
// the last one left in the caches is read first.
#pragma once

#include <stdint.h>

#include "kernels/common/element_type.h"
#include "kernels/common/isa.h"

namespace genssl {

constexpr int64_t kSinkhornRows = 64;
constexpr int64_t kSinkhornScratchRows = 4;

// Arrays but logits and codes hold numbers: double for double, float for the rest.
struct SinkhornArgs {
  ElementType type;
  int64_t rows, columns;
  double scale;        // log2(e) / epsilon
  const void* logits;  // [B, K]
  void* maximum;       // [K]
  void* offset;        // [K]
  void* sums;          // [K]
  double mean_sum;     // of the columns: 1 at first, then B / K
  void* block_maxima;  // [blocks, K]
  void* block_sums;    // [blocks, K]
  void* codes;         // [B, K]
  bool backwards;      // the rows last to first
  bool streaming;      // codes bypass the caches
};

static inline int64_t sinkhorn_blocks(int64_t rows) {
  return (rows + kSinkhornRows - 1) / kSinkhornRows;
}

}  // namespace genssl

// Blocks [begin, end): maxima of their columns, and sums of 2^((l - maximum) scale).
GENSSL_DECLARE_KERNEL(void, sinkhorn_block_maxima,
                      (const SinkhornArgs& args, int64_t begin, int64_t end))
// Columns [begin, end) of `maximum` and `sums`, from those of the blocks.
GENSSL_DECLARE_KERNEL(void, sinkhorn_maxima, (const SinkhornArgs& args, int64_t begin, int64_t end))
// Blocks [begin, end): column sums of the normalised rows. `scratch` holds
// kSinkhornScratchRows rows of K numbers.
GENSSL_DECLARE_KERNEL(void, sinkhorn_block_sums,
                      (const SinkhornArgs& args, int64_t begin, int64_t end, void* scratch))
// Columns [begin, end) of `sums`, from those of the blocks.
GENSSL_DECLARE_KERNEL(void, sinkhorn_sums, (const SinkhornArgs& args, int64_t begin, int64_t end))
// Columns [begin, end): offset -= log2 (sums / mean_sum).
GENSSL_DECLARE_KERNEL(void, sinkhorn_offsets,
                      (const SinkhornArgs& args, int64_t begin, int64_t end))
// Blocks [begin, end) of the codes.
GENSSL_DECLARE_KERNEL(void, sinkhorn_codes,
                      (const SinkhornArgs& args, int64_t begin, int64_t end, void* scratch))
