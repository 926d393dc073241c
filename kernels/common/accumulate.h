// C += A B for A[rows, depth] of any strides, B[depth, columns] in panels and C[rows, columns], as
// tiles held in registers; the transposed product that gradients of matrix.h's products need.
//
// B is packed into panels of kPanelColumns columns, each stored as [depth][kPanelColumns] (zero
// padded), as pack_rows makes them from rows: unlike pack_panel of matmul.h nothing is transposed.
// A panel stays in the first level cache while the tiles of A pass; a transposed A costs nothing
// more, since its numbers are broadcast one by one. Rows of C have room for whole panels.
//
// The rows of C are asked for before the products and are there after them: 92 to 102 GFLOP/s on
// one core (limit 115), [192, 192] times [192, 128] with all but A in the third level cache.
//
// What is added to an element of C is one chain of fused multiply-adds over k ascending that starts
// at 0: a long sum of many calls rounds like a sum of blocks, not like one chain.
#pragma once

#include "kernels/common/linear.h"

namespace genssl::GENSSL_ISA {

// A[r][k] lies at data[r * row_stride + k * depth_stride].
template <class T>
struct StridedRows {
  const T* data;
  int64_t row_stride, depth_stride;

  GENSSL_INLINE StridedRows from(int64_t row) const {
    return {data + row * row_stride, row_stride, depth_stride};
  }
};

// Panels over all of B's depth; `step` numbers lie between a panel and the next.
template <class T>
struct RowPanels {
  const T* data;
  int64_t step;

  // The panels of rows `first` on.
  GENSSL_INLINE RowPanels from(int64_t first) const {
    return {data + first * kPanelColumns<T>, step};
  }
};

// target[panel][first + r][n] = source[r][panel * kPanelColumns + n] for `rows` rows, where a panel
// holds `depth` rows.
template <class T>
inline void pack_rows(const T* source, int64_t stride, int64_t rows, int64_t columns, T* target,
                      int64_t first, int64_t depth) {
  constexpr int64_t width = kPanelColumns<T>;
  for (int64_t panel = 0; panel < count_panels<T>(columns); ++panel) {
    const int64_t left = columns - panel * width;
    T* rows_of_panel = target + (panel * depth + first) * width;
    for (int64_t r = 0; r < rows; ++r) {
      const T* row = source + r * stride + panel * width;
      for (int64_t n = 0; n < width; n += Vec<T>::size) {
        const Vec<T> value = n < left ? load_lanes(row + n, left - n) : Vec<T>(T(0));
        value.store(rows_of_panel + r * width + n);
      }
    }
  }
}

template <class T, int ROWS, int VECS>
__attribute__((noinline)) void accumulate_tile(StridedRows<T> a, const T* panel, int64_t depth,
                                               T* c, int64_t stride) {
  constexpr int size = Vec<T>::size, width = kPanelColumns<T>;
  Vec<T> sum[ROWS][VECS];
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < VECS; ++v) {
      sum[r][v] = Vec<T>(T(0));
      __builtin_prefetch(c + r * stride + v * size, 1);
    }
  }
  // One pointer serves three rows: one for each would be more than there are registers.
  constexpr int pointers = (ROWS + 2) / 3;
  const T* row[pointers];
  for (int i = 0; i < pointers; ++i) row[i] = a.data + 3 * i * a.row_stride;
  for (int64_t k = 0; k < depth; ++k) {
    Vec<T> weight[VECS];
    for (int v = 0; v < VECS; ++v) weight[v] = Vec<T>::load(panel + k * width + v * size);
    for (int r = 0; r < ROWS; ++r) {
      const Vec<T> factor(row[r / 3][r % 3 * a.row_stride]);
      for (int v = 0; v < VECS; ++v) sum[r][v] = fma(factor, weight[v], sum[r][v]);
    }
    for (int i = 0; i < pointers; ++i) row[i] += a.depth_stride;
  }
#pragma GCC unroll 16
  for (int r = 0; r < ROWS; ++r) {
    for (int v = 0; v < VECS; ++v) {
      T* target = c + r * stride + v * size;
      (Vec<T>::load(target) + sum[r][v]).store(target);
    }
  }
}

template <class T, int VECS>
GENSSL_INLINE void accumulate_rows(int rows, StridedRows<T> a, const T* panel, int64_t depth, T* c,
                                   int64_t stride) {
  constexpr int eight = kTileRows < 8 ? kTileRows : 8;
  switch (rows) {
    case 1:
      return accumulate_tile<T, 1, VECS>(a, panel, depth, c, stride);
    case 2:
      return accumulate_tile<T, 2, VECS>(a, panel, depth, c, stride);
    case 3:
      return accumulate_tile<T, 3, VECS>(a, panel, depth, c, stride);
    case 4:
      return accumulate_tile<T, 4, VECS>(a, panel, depth, c, stride);
    case 8:
      return accumulate_tile<T, eight, VECS>(a, panel, depth, c, stride);
    default:
      return accumulate_tile<T, kTileRows, VECS>(a, panel, depth, c, stride);
  }
}

// c[rows, columns] += a[rows, depth] times the first `depth` rows of the panels.
template <class T>
inline void accumulate(StridedRows<T> a, int64_t rows, int64_t depth, RowPanels<T> panels,
                       int64_t columns, T* c, int64_t stride) {
  constexpr int64_t width = kPanelColumns<T>;
  for (int64_t column = 0; column < columns; column += width) {
    const T* panel = panels.data + column / width * panels.step;
    const bool half = columns - column <= Vec<T>::size;
    for (int64_t row = 0; row < rows;) {
      const int tile = next_tile_rows(rows - row);
      T* target = c + row * stride + column;
      if (half) {
        accumulate_rows<T, 1>(tile, a.from(row), panel, depth, target, stride);
      } else {
        accumulate_rows<T, kPanelVecs>(tile, a.from(row), panel, depth, target, stride);
      }
      row += tile;
    }
  }
}

}  // namespace genssl::GENSSL_ISA
