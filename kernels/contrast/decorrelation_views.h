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

// One register of a row of z; lanes past the last column are 0.
template <class T>
GENSSL_INLINE Vec<T> load_view(const DecorrelationArgs<T>& args, int view, int64_t row,
                               int64_t column) {
  const int64_t left = args.columns - column;
  return left > 0 ? load_lanes(args.z[view] + row * args.columns + column, left) : Vec<T>(T(0));
}

// target[rows, columns] = x of a view, from row 0 on; stores whole registers where `padded`.
template <class T>
inline void normalize(const DecorrelationArgs<T>& args, int view, int64_t rows, int64_t column,
                      int64_t columns, T* target, int64_t stride, bool padded) {
  for (int64_t i = 0; i < columns; i += Vec<T>::size) {
    const ColumnMap<T> map(args, view, column + i);
    const int64_t left = padded ? Vec<T>::size : columns - i;
    for (int64_t n = 0; n < rows; ++n) {
      store_lanes(map(load_view(args, view, n, column + i)), target + n * stride + i, left);
    }
  }
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

// Statistics of one register of columns: means first, then moments about them.
template <class T>
inline void column_statistics(const DecorrelationArgs<T>& args, int64_t column) {
  const Vec<T> rows(T(args.rows)), one(T(1)), zero(T(0)), eps(T(args.eps));
  const auto load = [&](int view, int64_t n)
                        GENSSL_INLINE_LAMBDA { return load_view(args, view, n, column); };
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
    store(kMoment, cross / rows * scale[0] * scale[1]);
  }
  store(kDifference, moment[5]);
}

}  // namespace genssl::GENSSL_ISA
