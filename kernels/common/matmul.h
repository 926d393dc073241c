// C = A W^T for activations A[rows, depth] and weights W[columns, depth], as tiles held in
// registers.
//
// Weights are packed into panels of kPanelColumns columns, each stored as [depth][kPanelColumns]
// (zero padded). A tile of up to kTileRows rows by one panel keeps two registers of accumulators a
// row; a step of the loop loads two registers of weights and broadcasts one activation a row:
//
//   AVX-512  12 x 32 floats  24 of 32 registers accumulate, 14 loads for 24 fused multiply-adds
//   AVX2      6 x 16 floats  12 of 16 registers
//   baseline  4 x 8  floats   8 of 16 registers
//
// Every dot product is one chain of fused multiply-adds over k ascending that starts at 0, in every
// tile, tail and few-row path. So an element of C has the same bits wherever its row lies in the
// batch.
//
// Measured on one core of an AMD EPYC (Zen 4, whose limit is 115 GFLOP/s), AVX-512, fp32:
//   tiles of 12, 8, 6 and 4 rows, depth 256         115 GFLOP/s
//   one row and one panel, first level cache         79 GFLOP/s
//   one row and four panels, first level cache       99 GFLOP/s; 58 from the second, its bandwidth
//   packing, squares transposed in registers         3.3 numbers a nanosecond
#pragma once

#include "kernels/common/matrix.h"
#include "kernels/common/vec.h"

namespace genssl::GENSSL_ISA {

constexpr int kPanelVecs = 2;
template <class T>
constexpr int kPanelColumns = kPanelVecs * Vec<T>::size;
constexpr int kMaxPanelGroup = 4;

#if defined(__AVX512F__)
constexpr int kTileRows = 12;
#elif defined(__AVX2__)
constexpr int kTileRows = 6;
#else
constexpr int kTileRows = 4;
#endif

template <class T>
GENSSL_INLINE int64_t count_panels(int64_t columns) {
  return (columns + kPanelColumns<T> - 1) / kPanelColumns<T>;
}

template <class T>
GENSSL_INLINE int64_t packed_size(int64_t columns, int64_t depth) {
  return count_panels<T>(columns) * kPanelColumns<T> * depth;
}

// Transposes a square of lanes: 2 x 2 blocks of growing size, log2(size) rounds.
template <class T>
GENSSL_INLINE void transpose(Vec<T> (&square)[Vec<T>::size]) {
  constexpr int size = Vec<T>::size;
  using Index = typename Vec<T>::Mask;
#pragma GCC unroll 4
  for (int block = 1; block < size; block *= 2) {
    Index low, high;
    for (int lane = 0; lane < size; ++lane) {
      low[lane] = (lane & block) ? lane - block + size : lane;
      high[lane] = (lane & block) ? lane + size : lane + block;
    }
#pragma GCC unroll 16
    for (int i = 0; i < size; ++i) {
      if (i & block) continue;
      const auto upper = square[i].value, lower = square[i + block].value;
      square[i] = Vec<T>(__builtin_shuffle(upper, lower, low));
      square[i + block] = Vec<T>(__builtin_shuffle(upper, lower, high));
    }
  }
}

// Packs one panel: target[k][n] = weights[first + n][k], 0 where first + n >= columns.
template <class T>
inline void pack_panel(const Matrix<T>& matrix, int64_t panel, T* target) {
  constexpr int size = Vec<T>::size, width = kPanelColumns<T>;
  for (int vec = 0; vec < kPanelVecs; ++vec) {
    const int64_t first = panel * width + vec * size;
    const int64_t left = matrix.columns - first;
    const T* source = matrix.weights + first * matrix.depth;
    for (int64_t k = 0; k < matrix.depth; k += size) {
      const int count = matrix.depth - k < size ? static_cast<int>(matrix.depth - k) : size;
      Vec<T> square[size];
#pragma GCC unroll 16
      for (int n = 0; n < size; ++n) {
        square[n] = n >= left       ? Vec<T>(T(0))
                    : count == size ? Vec<T>::load(source + n * matrix.depth + k)
                                    : Vec<T>::load(source + n * matrix.depth + k, count);
      }
      transpose<T>(square);
      T* rows = target + k * width + vec * size;
      if (count == size) {
#pragma GCC unroll 16
        for (int i = 0; i < size; ++i) square[i].store(rows + i * width);
      } else {
        for (int i = 0; i < count; ++i) square[i].store(rows + i * width);
      }
    }
  }
}

// The register tile: sum[ROWS][PANELS * VECS] = a[ROWS, depth] times consecutive panels, of each of
// which the first VECS registers of columns are wanted. Loops at its ends are unrolled by name:
// otherwise sums start and end on the stack, 100 of the 3100 cycles of a tile of depth 128.
template <class T, int ROWS, int PANELS, int VECS>
GENSSL_INLINE void sum_products(const T* a, int64_t stride, const T* panels, int64_t depth,
                                Vec<T> (&sum)[ROWS][PANELS * VECS]) {
  constexpr int size = Vec<T>::size, width = kPanelColumns<T>;
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < PANELS * VECS; ++v) sum[r][v] = Vec<T>(T(0));
  }
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> weight[PANELS * VECS];
    for (int p = 0; p < PANELS; ++p) {
      for (int v = 0; v < VECS; ++v) {
        weight[p * VECS + v] = Vec<T>::load(panels + (p * depth + k) * width + v * size);
      }
    }
    for (int r = 0; r < ROWS; ++r) {
      const Vec<T> activation(a[r * stride + k]);
      for (int v = 0; v < PANELS * VECS; ++v) sum[r][v] = fma(activation, weight[v], sum[r][v]);
    }
  }
}

// The same, stored as c[PANELS][ROWS][kPanelColumns].
template <class T, int ROWS, int PANELS, int VECS>
__attribute__((noinline)) void multiply_tile(const T* a, int64_t stride, const T* panels,
                                             int64_t depth, T* c) {
  constexpr int size = Vec<T>::size, width = kPanelColumns<T>;
  Vec<T> sum[ROWS][PANELS * VECS];
  sum_products<T, ROWS, PANELS, VECS>(a, stride, panels, depth, sum);
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
    for (int p = 0; p < PANELS; ++p) {
      for (int v = 0; v < VECS; ++v) {
        sum[r][p * VECS + v].store(c + (p * ROWS + r) * width + v * size);
      }
    }
  }
}

template <class T, int PANELS, int VECS>
GENSSL_INLINE void multiply_rows(int rows, const T* a, int64_t stride, const T* panels,
                                 int64_t depth, T* c) {
  constexpr int eight = kTileRows < 8 ? kTileRows : 8;
  switch (rows) {
    case 1:
      return multiply_tile<T, 1, PANELS, VECS>(a, stride, panels, depth, c);
    case 2:
      return multiply_tile<T, 2, PANELS, VECS>(a, stride, panels, depth, c);
    case 3:
      return multiply_tile<T, 3, PANELS, VECS>(a, stride, panels, depth, c);
    case 4:
      return multiply_tile<T, 4, PANELS, VECS>(a, stride, panels, depth, c);
    case 8:
      return multiply_tile<T, eight, PANELS, VECS>(a, stride, panels, depth, c);
    default:
      return multiply_tile<T, kTileRows, PANELS, VECS>(a, stride, panels, depth, c);
  }
}

GENSSL_INLINE int next_tile_rows(int64_t rows) {
  if (rows >= kTileRows) return kTileRows;
  return static_cast<int>(rows >= 8 ? 8 : rows >= 4 ? 4 : rows);
}

// A single row takes several panels together: enough independent chains to hide the latency of fma.
GENSSL_INLINE int panels_at_a_time(int64_t rows, int64_t panels_left) {
  return rows == 1 && panels_left >= kMaxPanelGroup ? kMaxPanelGroup : 1;
}

// Elements of scratch memory for panels that are packed as they are used.
template <class T>
GENSSL_INLINE int64_t panel_scratch_size(int64_t depth) {
  return kMaxPanelGroup * kPanelColumns<T> * depth;
}

// Products of a[rows, depth] with `count` panels. Calls epilogue(row, rows, column, product) for
// every tile: product[rows][kPanelColumns] belongs to rows `row` on and columns `column` on. Its
// columns from matrix.columns on mean nothing.
template <class T, class Epilogue>
inline void multiply_panels(const T* a, int64_t stride, int64_t rows, const Matrix<T>& matrix,
                            int64_t panel, int count, T* scratch, const Epilogue& epilogue) {
  constexpr int width = kPanelColumns<T>;
  const int64_t depth = matrix.depth, panel_size = width * depth;
  const T* panels = matrix.panels + panel * panel_size;
  if (matrix.panels == nullptr) {
    for (int p = 0; p < count; ++p) pack_panel(matrix, panel + p, scratch + p * panel_size);
    panels = scratch;
  }
  alignas(kVecBytes) T product[(kTileRows > kMaxPanelGroup ? kTileRows : kMaxPanelGroup) * width];
  const bool half = matrix.columns - panel * width <= Vec<T>::size;
  for (int64_t row = 0; row < rows;) {
    const int tile = next_tile_rows(rows - row);
    const T* first = a + row * stride;
    if (count == kMaxPanelGroup) {
      multiply_tile<T, 1, kMaxPanelGroup, kPanelVecs>(first, stride, panels, depth, product);
    } else if (half) {
      multiply_rows<T, 1, 1>(tile, first, stride, panels, depth, product);
    } else {
      multiply_rows<T, 1, kPanelVecs>(tile, first, stride, panels, depth, product);
    }
    for (int p = 0; p < count; ++p) {
      epilogue(row, tile, (panel + p) * width, product + p * tile * width);
    }
    row += tile;
  }
}

// All columns of a[rows, depth] times the matrix.
template <class T, class Epilogue>
GENSSL_INLINE void multiply(const T* a, int64_t stride, int64_t rows, const Matrix<T>& matrix,
                            T* scratch, const Epilogue& epilogue) {
  const int64_t num_panels = count_panels<T>(matrix.columns);
  for (int64_t panel = 0; panel < num_panels;) {
    const int count = panels_at_a_time(rows, num_panels - panel);
    multiply_panels(a, stride, rows, matrix, panel, count, scratch, epilogue);
    panel += count;
  }
}

}  // namespace genssl::GENSSL_ISA
