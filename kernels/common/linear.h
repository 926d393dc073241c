// Linear layers for one block of samples, whose activations stay in the second level cache from
// layer to layer. Shared by networks that run whole.
#pragma once

#include "kernels/common/matmul.h"

namespace genssl::GENSSL_ISA {

constexpr int kMaxBlockRows = 8 * kTileRows;
constexpr int64_t kBlockBytes = 256 << 10;

// Rows of activations are padded to whole panels, and by one register so that a power of two does
// not send all rows to the same cache sets.
template <class T>
GENSSL_INLINE int64_t row_stride(int64_t columns) {
  return count_panels<T>(columns) * kPanelColumns<T> + Vec<T>::size;
}

GENSSL_INLINE int64_t larger(int64_t a, int64_t b) { return a < b ? b : a; }
GENSSL_INLINE int64_t smaller(int64_t a, int64_t b) { return a < b ? a : b; }
GENSSL_INLINE int64_t divide_up(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Rows of a block whose layers are `columns` wide: whole tiles, as many as fit the cache, and
// `samples` split evenly.
template <class T>
GENSSL_INLINE int64_t block_rows(int64_t columns, int64_t samples) {
  const int64_t row_bytes = 2 * row_stride<T>(columns) * sizeof(T);
  const int64_t fitting = larger(1, kBlockBytes / row_bytes / kTileRows) * kTileRows;
  const int64_t blocks = divide_up(samples, smaller(fitting, kMaxBlockRows));
  return divide_up(divide_up(samples, blocks), kTileRows) * kTileRows;
}

template <class T>
GENSSL_INLINE Vec<T> load_lanes(const T* source, int64_t count) {
  return count >= Vec<T>::size ? Vec<T>::load(source)
                               : Vec<T>::load(source, static_cast<int>(count));
}
template <class T>
GENSSL_INLINE void store_lanes(Vec<T> value, T* target, int64_t count) {
  count >= Vec<T>::size ? value.store(target) : value.store(target, static_cast<int>(count));
}

// Short pieces, for which a call of memcpy or memset takes longer.
template <class T>
GENSSL_INLINE void copy_lanes(const T* source, int64_t count, T* target) {
  for (int64_t i = 0; i < count; i += Vec<T>::size) {
    store_lanes(load_lanes(source + i, count - i), target + i, count - i);
  }
}
template <class T>
GENSSL_INLINE void clear_lanes(T* target, int64_t count) {
  for (int64_t i = 0; i < count; i += Vec<T>::size) {
    store_lanes(Vec<T>(T(0)), target + i, count - i);
  }
}

// Calls element(row, column, lanes, value) for every register of a tile of products.
template <class T, class Element>
GENSSL_INLINE void for_each_register(int64_t row, int rows, int64_t column, int64_t columns,
                                     const T* product, const Element& element) {
  for (int vec = 0; vec < kPanelVecs; ++vec, column += Vec<T>::size) {
    if (column >= columns) return;
    const T* values = product + vec * Vec<T>::size;
    for (int r = 0; r < rows; ++r) {
      element(row + r, column, columns - column, Vec<T>::load(values + r * kPanelColumns<T>));
    }
  }
}

// Calls element(row, column, lanes, value) for every register of a W^T + bias.
template <class T, class Element>
inline void for_each_sum(const T* a, int64_t stride, int64_t rows, const Matrix<T>& matrix,
                         const T* bias, T* panels, const Element& element) {
  multiply(a, stride, rows, matrix, panels,
           [&](int64_t row, int count, int64_t column, const T* product) {
             const auto add = [&](int64_t r, int64_t n, int64_t lanes, Vec<T> value) {
               element(r, n, lanes, value + load_lanes(bias + n, lanes));
             };
             for_each_register<T>(row, count, column, matrix.columns, product, add);
           });
}

// target[rows, columns] = a W^T + bias.
template <class T>
inline void linear(const T* a, int64_t stride, int64_t rows, const Matrix<T>& matrix, const T* bias,
                   T* target, int64_t target_stride, T* panels) {
  for_each_sum(a, stride, rows, matrix, bias, panels,
               [&](int64_t r, int64_t n, int64_t lanes, Vec<T> sum) {
                 store_lanes(sum, target + r * target_stride + n, lanes);
               });
}

}  // namespace genssl::GENSSL_ISA
