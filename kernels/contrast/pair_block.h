// One task of pairs.h: the scores of a block of x with a block of y, and the products of its
// weights with both.
#pragma once

#include "kernels/common/accumulate.h"
#include "kernels/common/lanes.h"
#include "kernels/common/math.h"
#include "kernels/contrast/pairs.h"

namespace genssl::GENSSL_ISA {

template <class T>
constexpr T kMinusInfinity = T(-__builtin_inf());

template <class T>
using Ids = typename Vec<T>::Mask;
template <class T>
struct IdOf;
template <>
struct IdOf<float> {
  using type = int32_t;
};
template <>
struct IdOf<double> {
  using type = int64_t;
};
template <class T>
using Id = typename IdOf<T>::type;

template <class T>
GENSSL_INLINE Ids<T> load_ids(const Id<T>* source, int64_t count) {
  Ids<T> ids{};
  if (count >= Vec<T>::size) {
    memcpy(&ids, source, sizeof ids);  // of constant size: no call
  } else {
    memcpy(&ids, source, count * sizeof(Id<T>));
  }
  return ids;
}
template <class T>
GENSSL_INLINE Ids<T> lane_numbers() {
  Ids<T> lanes;
  for (int lane = 0; lane < Vec<T>::size; ++lane) lanes[lane] = lane;
  return lanes;
}

// Rows [row, row_end) of x and [column, column_end) of y, and their block of numbers.
template <class T>
struct Block {
  int64_t row, row_end, column, column_end;
  T* numbers;  // [row_end - row, stride]
  int64_t stride;

  GENSSL_INLINE int64_t rows() const { return row_end - row; }
  GENSSL_INLINE int64_t columns() const { return column_end - column; }
  GENSSL_INLINE T* at(int64_t r, int64_t n) const {
    return numbers + (r - row) * stride + (n - column);
  }
};

// A register more than whole panels, so that a power of two does not send all rows to the same
// cache sets.
template <class T>
GENSSL_INLINE int64_t block_stride(const PairShape& shape) {
  return shape.column_block + Vec<T>::size;
}

// The scratch memory that follows a block.
template <class T>
GENSSL_INLINE T* beside_block(const PairShape& shape, void* scratch) {
  return static_cast<T*>(scratch) + shape.row_block * block_stride<T>(shape);
}

template <class T>
GENSSL_INLINE Block<T> block_of(const PairShape& shape, BlockPair pair, T* numbers) {
  const int64_t row = pair.row * shape.row_block, column = pair.column * shape.column_block;
  return {row,     smaller(row + shape.row_block, shape.rows),
          column,  smaller(column + shape.column_block, shape.columns),
          numbers, block_stride<T>(shape)};
}

GENSSL_INLINE bool is_on_diagonal(const PairShape& shape, BlockPair pair) {
  return shape.gram && pair.row == pair.column;
}

template <class T>
GENSSL_INLINE const T* typed(const void* pointer) {
  return static_cast<const T*>(pointer);
}
template <class T>
GENSSL_INLINE T* typed(void* pointer) {
  return static_cast<T*>(pointer);
}

// Into the second level cache, ahead of use. Rows of a tile are too many short streams for the
// processor to foresee: 92 to 101 GFLOP/s at depth 128 (limit 115).
template <class T>
GENSSL_INLINE void fetch_rows(const T* rows, int64_t stride, int64_t begin, int64_t end) {
  constexpr int64_t line = 64 / sizeof(T);
  for (int64_t i = begin * stride; i < end * stride; i += line) __builtin_prefetch(rows + i, 0, 2);
}

// Calls element(row, column, lanes, score) for every register of a block of scores. A pair that is
// left out, and a lane past the columns, has the score -infinity.
template <class T, class Element>
inline void for_each_score(const PairArgs& args, const Block<T>& block, const Element& element) {
  const T* row_bias = typed<T>(args.row_bias);
  const T* column_bias = typed<T>(args.column_bias);
  const auto* row_ids = typed<Id<T>>(args.row_ids);
  const auto* column_ids = typed<Id<T>>(args.column_ids);
  const Ids<T> lane_number = lane_numbers<T>();
  const Vec<T> left_out(kMinusInfinity<T>);
  const auto finish = [&](int64_t r, int64_t n, int64_t lanes, Vec<T> score) GENSSL_INLINE_LAMBDA {
    if (row_bias) score = score + Vec<T>(row_bias[r]);
    if (column_bias) score = score + load_lanes(column_bias + n, lanes);
    if (row_ids) score = select(load_ids<T>(column_ids + n, lanes) == row_ids[r], left_out, score);
    if (lanes < Vec<T>::size) {
      score = select(lane_number < static_cast<Id<T>>(lanes), score, left_out);
    }
    element(r, n, lanes, score);
  };
  const Matrix<T> matrix{nullptr, typed<T>(args.y_panels), args.shape.columns, args.shape.depth};
  const T* x = typed<T>(args.x) + block.row * args.x_stride;
  const int64_t first = block.column / kPanelColumns<T>;
  const auto epilogue = [&](int64_t row, int rows, int64_t column, const T* product) {
    if (column == first * kPanelColumns<T>) {
      fetch_rows(x, args.x_stride, row + 2 * rows, smaller(row + 3 * rows, block.rows()));
    }
    for_each_register<T>(block.row + row, rows, column, block.column_end, product, finish);
  };
  const int64_t end = count_panels<T>(block.column_end);
  for (int64_t panel = first; panel < end; ++panel) {
    multiply_panels<T>(x, args.x_stride, block.rows(), matrix, panel, 1, nullptr, epilogue);
  }
}

// to_x += W y for the block of weights W, and to_y += W^T x, for those that are wanted.
template <class T>
inline void accumulate_gradients(const PairGradientArgs& args, const Block<T>& block, bool to_y) {
  const PairShape& shape = args.pairs.shape;
  if (args.to_x) {
    const RowPanels<T> y{typed<T>(args.pairs.y_rows), shape.columns * kPanelColumns<T>};
    accumulate(StridedRows<T>{block.numbers, block.stride, 1}, block.rows(), block.columns(),
               y.from(block.column), shape.depth, typed<T>(args.to_x) + block.row * args.stride,
               args.stride);
  }
  if (to_y) {
    const RowPanels<T> x{typed<T>(args.pairs.x_rows), shape.rows * kPanelColumns<T>};
    accumulate(StridedRows<T>{block.numbers, 1, block.stride}, block.columns(), block.rows(),
               x.from(block.row), shape.depth, typed<T>(args.to_y) + block.column * args.stride,
               args.stride);
  }
}

// sums[r] += the sum of row r of the block.
template <class T>
inline void add_sums_of_rows(const Block<T>& block, T* sums) {
  for (int64_t r = block.row; r < block.row_end; ++r) {
    Vec<T> sum(T(0));
    for (int64_t n = block.column; n < block.column_end; n += Vec<T>::size) {
      sum = sum + load_lanes(block.at(r, n), block.column_end - n);
    }
    sums[r] += sum_in_order(sum);
  }
}

// The sum of number(score) over the rows of columns n on: four chains round less than one.
template <class T, class Number>
GENSSL_INLINE Vec<T> sum_over_rows(const Block<T>& block, int64_t n, const Number& number) {
  Vec<T> sums[4];
  for (int i = 0; i < 4; ++i) sums[i] = Vec<T>(T(0));
  int64_t r = block.row;
  for (; r + 4 <= block.row_end; r += 4) {
    for (int i = 0; i < 4; ++i) sums[i] = sums[i] + number(Vec<T>::load(block.at(r + i, n)));
  }
  for (; r < block.row_end; ++r) sums[0] = sums[0] + number(Vec<T>::load(block.at(r, n)));
  return (sums[0] + sums[1]) + (sums[2] + sums[3]);
}

template <class T>
inline void add_sums_of_columns(const Block<T>& block, T* sums) {
  for (int64_t n = block.column; n < block.column_end; n += Vec<T>::size) {
    const auto itself = [](Vec<T> weight) GENSSL_INLINE_LAMBDA { return weight; };
    const int64_t lanes = block.column_end - n;
    store_lanes(load_lanes(sums + n, lanes) + sum_over_rows(block, n, itself), sums + n, lanes);
  }
}

template <class T>
inline void add_weights(const PairGradientArgs& args, const Block<T>& block, bool to_columns) {
  if (args.row_weights) add_sums_of_rows(block, typed<T>(args.row_weights));
  if (args.column_weights && to_columns) {
    add_sums_of_columns(block, typed<T>(args.column_weights));
  }
}

}  // namespace genssl::GENSSL_ISA
