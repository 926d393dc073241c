// The two views of a decorrelation loss: their statistics, and the normalised columns.
#pragma once

#include "kernels/common/linear.h"
#include "kernels/contrast/decorrelation.h"

namespace genssl::GENSSL_ISA {

constexpr int64_t kSumRows = 16;  // rows that are summed before they join the others

// z -> (z - mean) scale + offset in the lanes of one register.
template <class T>
struct ColumnMap {
  Vec<T> mean, scale, offset;

  GENSSL_INLINE ColumnMap() = default;
  GENSSL_INLINE ColumnMap(const DecorrelationArgs<T>& args, int view, int64_t column)
      : mean(statistic(args, kMean + view, column)),
        scale(statistic(args, kScale + view, column)),
        offset(statistic(args, kOffset + view, column)) {}

  static GENSSL_INLINE Vec<T> statistic(const DecorrelationArgs<T>& args, int row, int64_t column) {
    return column < args.columns ? load_lanes(args.statistic(row) + column, args.columns - column)
                                 : Vec<T>(T(0));
  }
  GENSSL_INLINE Vec<T> operator()(Vec<T> z) const { return fma(z - mean, scale, offset); }
};

// Where the columns of a strip go, panel by panel: of a row-major target a panel follows another.
template <class T>
struct StripTarget {
  T* data;
  int64_t stride, step;  // from a row to the next, from a panel to the next

  GENSSL_INLINE T* at(int64_t row, int64_t column) const {
    constexpr int64_t width = kPanelVecs * kVecBytes / sizeof(T);  // T may be const
    return data + row * stride + column / width * step + column % width;
  }
};
template <class T>
GENSSL_INLINE StripTarget<T> row_major(T* data, int64_t stride) {
  return {data, stride, kPanelColumns<T>};
}
template <class T>
GENSSL_INLINE StripTarget<T> in_panels(T* data, int64_t rows) {
  return {data, kPanelColumns<T>, rows * kPanelColumns<T>};
}

// Strips of kStripColumns columns; the last may be narrower.
template <class T>
GENSSL_INLINE int64_t columns_of_strip(const DecorrelationArgs<T>& args, int64_t strip) {
  return smaller(kStripColumns, args.columns - strip * kStripColumns);
}

template <class T>
constexpr int kStripVecs = kStripColumns / Vec<T>::size;

// Calls element(row, i, lanes, z) for every register of rows [0, rows) of a strip, row by row, so
// that memory is read in long pieces.
template <class T, class Element>
GENSSL_INLINE void for_each_of_strip(const DecorrelationArgs<T>& args, int view, int64_t rows,
                                     int64_t column, int64_t columns, const Element& element) {
  for (int64_t n = 0; n < rows; ++n) {
    const T* z = args.z[view] + n * args.columns + column;
    for (int64_t i = 0; i < columns; i += Vec<T>::size) {
      element(n, i, columns - i, load_lanes(z + i, columns - i));
    }
  }
}

// x of a view in rows [0, rows) of a strip. Whole registers are stored where `padded`: 0 past the
// columns.
template <class T>
inline void normalize(const DecorrelationArgs<T>& args, int view, int64_t rows, int64_t column,
                      int64_t columns, const StripTarget<T>& target, bool padded) {
  ColumnMap<T> maps[kStripVecs<T>];
  for (int64_t i = 0; i < columns; i += Vec<T>::size) {
    maps[i / Vec<T>::size] = ColumnMap<T>(args, view, column + i);
  }
  for_each_of_strip(args, view, rows, column, columns,
                    [&](int64_t n, int64_t i, int64_t lanes, Vec<T> z) GENSSL_INLINE_LAMBDA {
                      store_lanes(maps[i / Vec<T>::size](z), target.at(n, i),
                                  padded ? Vec<T>::size : lanes);
                    });
}

// Sums over the rows: term(row, sums) adds to `COUNT` sums, which join the others block by block.
template <class T, int COUNT, class Term>
GENSSL_INLINE void sum_rows(int64_t rows, Vec<T> (&total)[COUNT], const Term& term) {
  for (int i = 0; i < COUNT; ++i) total[i] = Vec<T>(T(0));
  for (int64_t begin = 0; begin < rows; begin += kSumRows) {
    Vec<T> sum[COUNT];
    for (int i = 0; i < COUNT; ++i) sum[i] = Vec<T>(T(0));
    const int64_t end = smaller(begin + kSumRows, rows);
    for (int64_t n = begin; n < end; ++n) term(n, sum);
    for (int i = 0; i < COUNT; ++i) total[i] = total[i] + sum[i];
  }
}

// Statistics of one register of columns of a strip [2, N, kStripColumns]: means first, then moments
// about them.
template <class T>
inline void column_statistics(const DecorrelationArgs<T>& args, const T* strip, int64_t column) {
  const Vec<T> rows(T(args.rows)), one(T(1)), zero(T(0)), eps(T(args.eps));
  const auto load = [&](int view, int64_t n) GENSSL_INLINE_LAMBDA {
    return Vec<T>::load(strip + (view * args.rows + n) * kStripColumns);
  };
  const auto store = [&](int row, Vec<T> value) GENSSL_INLINE_LAMBDA {
    store_lanes(value, args.statistic(row) + column, args.columns - column);
  };
  Vec<T> sum[2];
  sum_rows<T, 2>(args.rows, sum, [&](int64_t n, Vec<T>(&s)[2]) GENSSL_INLINE_LAMBDA {
    s[0] = s[0] + load(0, n);
    s[1] = s[1] + load(1, n);
  });
  const Vec<T> mean[2] = {sum[0] / rows, sum[1] / rows};
  Vec<T> moment[6];  // u, v, u^2, v^2, u v, (z1 - z2)^2
  sum_rows<T, 6>(args.rows, moment, [&](int64_t n, Vec<T>(&s)[6]) GENSSL_INLINE_LAMBDA {
    const Vec<T> z1 = load(0, n), z2 = load(1, n);
    const Vec<T> u = z1 - mean[0], v = z2 - mean[1], difference = z1 - z2;
    s[0] = s[0] + u;
    s[1] = s[1] + v;
    s[2] = fma(u, u, s[2]);
    s[3] = fma(v, v, s[3]);
    s[4] = fma(u, v, s[4]);
    s[5] = fma(difference, difference, s[5]);
  });
  const bool standardize = args.loss == Decorrelation::barlow_twins;
  Vec<T> scale[2];
  for (int view = 0; view < 2; ++view) {
    const Vec<T> lost = moment[view] / rows;
    const Vec<T> squares = moment[2 + view] - lost * moment[view];
    scale[view] = standardize ? one / sqrt(max(squares / rows, zero) + eps) : one;
    store(kMean + view, mean[view]);
    store(kScale + view, scale[view]);
    store(kOffset + view, -lost * scale[view]);
    if (!standardize) store(kMoment + view, max(squares, zero) / (rows - one));
  }
  if (standardize) {
    const Vec<T> cross = moment[4] - moment[0] / rows * moment[1];
    for (int view = 0; view < 2; ++view) {
      store(kMoment + view, cross / rows * scale[0] * scale[1]);
    }
  }
  store(kDifference, moment[5]);
}

}  // namespace genssl::GENSSL_ISA
