// Feature decorrelation: Barlow Twins and VICReg without a D x D matrix.
//
// A view z[N, D] is brought to x = (z - mean) scale + offset, where the scale is 1 / sqrt(var +
// eps) (Barlow Twins) or 1 (VICReg) and the offset what the mean lost by rounding. With S = x_v^T
// x_w over the rows, of both views (Barlow Twins) or of each with itself (VICReg), the losses need
// the sum of squares of S off its diagonal, and their gradients x S. Two ways, the choice is the
// caller's:
//
//   Gram, for 2N < D    |S|^2 = <G_v, G_w> and x_v S = G_v x_w for G = x x^T [N, N]
//                       6 N^2 D operations: half of each Gram matrix is computed, both products
//   tiles, otherwise    blocks of S, kBlockFeatures squared, each used for both products while it
//                       is in the cache: 6 N D^2, of which symmetry saves VICReg half of S
//
// The diagonal of a Gram matrix is D times the rest: its mean is taken away before x is multiplied,
// and returned with the other terms of x, since else the sums would be rounded at its size.
//
// Stages, each over a partition that does not depend on the threads:
//   statistics   by strips of columns: mean and centred moments, from blocks of rows
//   gram         by segments of columns: a strip is normalised, packed and multiplied while it is
//                in the cache; gram_sum adds the segments and takes the inner products in fp64
//   normalize, tiles   x once in memory; rounds of pairs of blocks (I, J) with I + J constant, so
//                that no two pairs of a round write to the same columns: no atomics, no copies
//   gradient     by strips of columns: x is formed again, multiplied by the Gram matrix (or x S
//                read), and diagonal, invariance and batch norm are applied in the cache
//
// 256 x 8192, forward and backward, one core of an AMD EPYC with AVX-512 under load, CPU time
// against the micro-kernel alone for 6 N^2 D operations: 59 % with single panels, 57 % with strips
// of 128 columns (no difference that the noise would show); 1024 x 1024 by tiles 57 to 68 %. By
// samples of the first: products 61, gradient elementwise 17, statistics 10, normalising 6, packing
// and sums 5 %. Taking the mean off the diagonals brought the largest error of VICReg's gradient,
// 512 x 4096, from 1.25 to 0.36 of what the benchmark's gate allows.
#pragma once

#include <stdint.h>

#include "kernels/common/isa.h"

// A copy of an inline function that is left would be shared by all instruction sets.
#define GENSSL_ALWAYS_INLINE inline __attribute__((always_inline))

namespace genssl {

enum class Decorrelation { barlow_twins, vicreg };

// Rows of the statistics [kStatistics, D]; those of a pair belong to the two views.
enum Statistic {
  kMean = 0,
  kScale = 2,
  kOffset = 4,
  kDiagonal = 6,     // what the gradient takes of x: the other view's (Barlow Twins) or its own
  kMoment = 8,       // S_ii / N (Barlow Twins, twice), S_ii / (N - 1) of each view (VICReg)
  kDifference = 10,  // sum of (z1 - z2)^2 (VICReg)
  kStatistics = 11,
};

constexpr int64_t kStripColumns = 128;   // of a strip, the piece of x that stays in the cache
constexpr int64_t kGroupRows = 512;      // of a Gram matrix that one unit computes
constexpr int64_t kBlockFeatures = 128;  // of a block of S
constexpr int64_t kChunkRows = 256;      // of x that a block of S is summed over at a time

template <class T>
struct DecorrelationArgs {
  Decorrelation loss;
  int64_t rows, columns;  // N, D
  const T* z[2];          // [N, D]
  T* statistics;          // [kStatistics, D]
  double eps;

  GENSSL_ALWAYS_INLINE T* statistic(int row) const { return statistics + row * columns; }
};

template <class T>
struct GramArgs {
  DecorrelationArgs<T> views;
  int64_t segments, segment_columns, groups;
  T* partial;        // [segments, 2, N, stride]
  int64_t stride;    // N padded to whole panels
  T* gram;           // [2, N, N]
  T shift[2];        // taken from their diagonals
  double* products;  // a partial inner product for each panel of columns of the Gram matrices
};

template <class T>
struct TileArgs {
  DecorrelationArgs<T> views;
  int64_t blocks, stride;  // of x and of the products
  T* x[2];                 // [N, stride]
  T* product[2];           // x S off its diagonal, [N, stride]; null where no gradient is wanted
  double* squares;         // [rounds, units]
};

template <class T>
struct GradientArgs {
  DecorrelationArgs<T> views;
  const T* gram[2];     // [N, N], or null
  const T* product[2];  // [N, stride] without a Gram matrix
  int64_t stride;
  T grad, coupling, invariance;  // of the loss; factors of x S and of z1 - z2
  T shift;       // coupling times eps times the shift of a Gram matrix (Barlow Twins)
  T* grad_z[2];  // [N, D]
};

// Pairs of blocks (I, J) of a round.
GENSSL_ALWAYS_INLINE int64_t tile_rounds(Decorrelation loss, int64_t blocks) {
  return loss == Decorrelation::vicreg ? blocks | 1 : blocks;
}
GENSSL_ALWAYS_INLINE int64_t tile_units(Decorrelation loss, int64_t blocks) {
  return loss == Decorrelation::vicreg ? 2 * tile_rounds(loss, blocks) : blocks;
}

}  // namespace genssl

// Elements of scratch memory of one thread, enough for any stage.
GENSSL_DECLARE_KERNEL(template <class T> int64_t, decorrelation_scratch, (int64_t rows))
// Strips [begin, end) of columns.
GENSSL_DECLARE_KERNEL(template <class T> void, decorrelation_statistics,
                      (const DecorrelationArgs<T>& args, int64_t begin, int64_t end, T* scratch))
// Units [begin, end) of segments * groups.
GENSSL_DECLARE_KERNEL(template <class T> void, decorrelation_gram,
                      (const GramArgs<T>& args, int64_t begin, int64_t end, T* scratch))
// Panels [begin, end) of columns of the Gram matrices.
GENSSL_DECLARE_KERNEL(template <class T> void, decorrelation_gram_sum,
                      (const GramArgs<T>& args, int64_t begin, int64_t end))
// Strips [begin, end) of columns.
GENSSL_DECLARE_KERNEL(template <class T> void, decorrelation_normalize,
                      (const TileArgs<T>& args, int64_t begin, int64_t end))
// Units [begin, end) of a round.
GENSSL_DECLARE_KERNEL(template <class T> void, decorrelation_tiles,
                      (const TileArgs<T>& args, int64_t round, int64_t begin, int64_t end,
                       T* scratch))
// Strips [begin, end) of columns.
GENSSL_DECLARE_KERNEL(template <class T> void, decorrelation_gradient,
                      (const GradientArgs<T>& args, int64_t begin, int64_t end, T* scratch))
