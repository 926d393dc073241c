#include "kernels/contrast/decorrelation.h"

#include "kernels/common/accumulate.h"
#include "kernels/common/element.h"
#include "kernels/common/lanes.h"
#include "kernels/contrast/decorrelation_views.h"

namespace genssl::GENSSL_ISA {
namespace {

GENSSL_INLINE void add_product(Vec<double> a, Vec<double> b, Vec<double>& sum) {
  sum = fma(a, b, sum);
}
GENSSL_INLINE void add_product(Vec<float> a, Vec<float> b, Vec<double>& sum) {
  float left[Vec<float>::size], right[Vec<float>::size];
  a.store(left);
  b.store(right);
  for (int i = 0; i < Vec<float>::size; i += Vec<double>::size) {
    Vec<double> x, y;
    load_floats(left + i, x);
    load_floats(right + i, y);
    sum = fma(x, y, sum);
  }
}

// Panels of columns [begin, end) of a Gram matrix from a strip of x, on and above its diagonal.
template <class T>
void multiply_strip(const T* x, int64_t rows, int64_t depth, int64_t begin, int64_t end,
                    T* panel_scratch, T* gram, int64_t stride, bool first) {
  const Matrix<T> transposed{x, nullptr, rows, depth};
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t above = smaller(rows, (panel + 1) * kPanelColumns<T>);
    multiply_panels(x, depth, above, transposed, panel, 1, panel_scratch,
                    [&](int64_t row, int count, int64_t column, const T* product) {
                      const auto add = [&](int64_t r, int64_t m, int64_t,
                                           Vec<T> value) GENSSL_INLINE_LAMBDA {
                        T* target = gram + r * stride + m;
                        (first ? value : Vec<T>::load(target) + value).store(target);
                      };
                      for_each_register<T>(row, count, column, rows, product, add);
                    });
  }
}

// One segment of columns and one group of panels of the Gram matrices.
template <class T>
void gram_unit(const GramArgs<T>& args, int64_t unit, T* scratch) {
  const DecorrelationArgs<T>& views = args.views;
  const int64_t segment = unit / args.groups, group = unit % args.groups;
  const int64_t rows = smaller(views.rows, (group + 1) * kGroupRows);
  const int64_t first_panel = group * kGroupRows / kPanelColumns<T>;
  const int64_t begin = segment * args.segment_columns;
  const int64_t end = smaller(begin + args.segment_columns, views.columns);
  T* panel_scratch = scratch + rows * kStripColumns;
  for (int64_t column = begin; column < end; column += kStripColumns) {
    const int64_t depth = smaller(kStripColumns, end - column);
    for (int view = 0; view < 2; ++view) {
      T* gram = args.partial + (2 * segment + view) * views.rows * args.stride;
      normalize(views, view, rows, column, depth, row_major(scratch, depth), false);
      multiply_strip(scratch, rows, depth, first_panel, count_panels<T>(rows), panel_scratch, gram,
                     args.stride, column == begin);
    }
  }
}

// Mirrors rows [0, rows) of `columns` columns of a symmetric matrix.
template <class T>
void mirror(T* matrix, int64_t stride, int64_t rows, int64_t column, int64_t columns) {
  constexpr int size = Vec<T>::size;
  for (int64_t m = column; m < column + columns; m += size) {
    const int64_t left = column + columns - m;
    for (int64_t n = 0; n < rows; n += size) {
      Vec<T> square[size];
#pragma GCC unroll 16
      for (int i = 0; i < size; ++i) square[i] = load_lanes(matrix + (n + i) * stride + m, left);
      transpose<T>(square);
      for (int i = 0; i < size && i < left; ++i) square[i].store(matrix + (m + i) * stride + n);
    }
  }
}

// Sums the segments of one panel of columns of both Gram matrices, and their inner product (Barlow
// Twins) or the sum of their squares.
template <class T>
double sum_panel(const GramArgs<T>& args, int64_t panel) {
  constexpr int64_t width = kPanelColumns<T>;
  const int64_t rows = args.views.rows, column = panel * width, size = rows * args.stride;
  const int64_t columns = smaller(width, rows - column);
  Vec<double> above(0.0), within(0.0);
  for (int64_t n = 0; n < column + columns; ++n) {
    Vec<double>& sum = n < column ? above : within;
    for (int64_t m = column; m < column + columns; m += Vec<T>::size) {
      Vec<T> value[2];
      for (int view = 0; view < 2; ++view) {
        const T* partial = args.partial + view * size + n * args.stride + m;
        const int64_t left = column + columns - m;
        value[view] = load_lanes(partial, left);
        for (int64_t s = 1; s < args.segments; ++s) {
          value[view] = value[view] + load_lanes(partial + 2 * s * size, left);
        }
        store_lanes(value[view], args.gram + view * rows * rows + n * rows + m, left);
      }
      const bool crossed = args.views.loss == Decorrelation::barlow_twins;
      add_product(value[0], value[crossed], sum);
      if (!crossed) add_product(value[1], value[1], sum);
    }
  }
  for (int view = 0; view < 2; ++view) {
    T* gram = args.gram + view * rows * rows;
    mirror(gram, rows, column, column, columns);
    for (int64_t n = column; n < column + columns; ++n) gram[n * rows + n] -= args.shift[view];
  }
  return 2 * sum_in_order(above) + sum_in_order(within);
}

// Features [begin, begin + count) of a view.
struct Block {
  int view;
  int64_t begin, count;
};

// source[rows, block] in panels and as they are, over a chunk of rows at a time: S of two blocks.
template <class T>
void multiply_blocks(const TileArgs<T>& args, Block left, Block right, T* product, T* panels) {
  for (int64_t i = 0; i < kBlockFeatures * kBlockFeatures; i += Vec<T>::size) {
    Vec<T>(T(0)).store(product + i);
  }
  for (int64_t row = 0; row < args.views.rows; row += kChunkRows) {
    const int64_t depth = smaller(kChunkRows, args.views.rows - row);
    const T* x = args.x[left.view] + row * args.stride + left.begin;
    const T* y = args.x[right.view] + row * args.stride + right.begin;
    pack_rows(y, args.stride, depth, right.count, panels, 0, depth);
    accumulate<T>({x, 1, args.stride}, left.count, depth, {panels, depth * kPanelColumns<T>},
                  right.count, product, kBlockFeatures);
  }
}

// Zeroes the diagonal of a block on the diagonal of S, and sums the squares of the rest.
template <class T>
double square_block(T* product, Block left, Block right) {
  if (left.begin == right.begin) {
    for (int64_t i = 0; i < left.count; ++i) product[i * kBlockFeatures + i] = T(0);
  }
  Vec<double> sum(0.0);
  for (int64_t i = 0; i < left.count; ++i) {
    for (int64_t j = 0; j < right.count; j += Vec<T>::size) {
      const Vec<T> value = load_lanes(product + i * kBlockFeatures + j, right.count - j);
      add_product(value, value, sum);
    }
  }
  return sum_in_order(sum);
}

// S of a pair of blocks, its sum of squares, and what it adds to x S and S x^T.
template <class T>
double tile(const TileArgs<T>& args, Block left, Block right, T* scratch) {
  constexpr int64_t step = kBlockFeatures * kPanelColumns<T>;
  T* product = scratch;
  T* panels = scratch + kBlockFeatures * kBlockFeatures;
  multiply_blocks(args, left, right, product, panels);
  const double squares = square_block(product, left, right);
  if (!args.product[0]) return squares;
  const int64_t rows = args.views.rows;
  const auto rows_of = [&](Block block) {
    return StridedRows<T>{args.x[block.view] + block.begin, args.stride, 1};
  };
  const Matrix<T> transposed{product, nullptr, left.count, kBlockFeatures};
  for (int64_t panel = 0; panel < count_panels<T>(left.count); ++panel) {
    pack_panel(transposed, panel, panels + panel * step);
  }
  accumulate<T>(rows_of(right), rows, right.count, {panels, step}, left.count,
                args.product[left.view] + left.begin, args.stride);
  if (left.view == right.view && left.begin == right.begin) return squares;  // symmetric
  pack_rows(product, kBlockFeatures, left.count, right.count, panels, 0, kBlockFeatures);
  accumulate<T>(rows_of(left), rows, left.count, {panels, step}, right.count,
                args.product[right.view] + right.begin, args.stride);
  return squares;
}

// The pair of blocks of a unit in a round; none where the sum of squares is 0.
template <class T>
double tile_unit(const TileArgs<T>& args, int64_t round, int64_t unit, T* scratch) {
  const bool symmetric = args.views.loss == Decorrelation::vicreg;
  const int64_t rounds = tile_rounds(args.views.loss, args.blocks);
  const int view = static_cast<int>(unit / rounds);
  const int64_t i = unit % rounds, j = (round - i + rounds) % rounds;
  if (i >= args.blocks || j >= args.blocks || (symmetric && i > j)) return 0;
  const auto block = [&](int of, int64_t index) {
    const int64_t begin = index * kBlockFeatures;
    return Block{of, begin, smaller(kBlockFeatures, args.views.columns - begin)};
  };
  const double squares = tile(args, block(view, i), block(symmetric ? view : 1, j), scratch);
  return symmetric && i < j ? 2 * squares : squares;
}

// The product x S of a strip, from a Gram matrix or as it lies in memory, and the views x.
template <class T>
struct GradientStrip {
  int64_t column, columns;
  StripTarget<const T> product;
  StripTarget<T> x[2];

  GENSSL_INLINE Vec<T> along(int view, int64_t row, int64_t i) const {
    return Vec<T>::load(x[view].at(row, i));
  }
};

// Batch norm's backward, whose mean is 0 since the columns of x S sum to zero. Of what the shift
// took from the Gram matrix, s x, it leaves s x eps scale^2.
template <class T>
void barlow_twins_strip(const GradientArgs<T>& args, int view, const GradientStrip<T>& strip) {
  const DecorrelationArgs<T>& views = args.views;
  const Vec<T> coupling(args.coupling), grad(args.grad);
  Vec<T> diagonal[kStripVecs<T>], mean[kStripVecs<T>], scale[kStripVecs<T>];
  const auto to_x = [&](int64_t n, int64_t i) GENSSL_INLINE_LAMBDA {
    const Vec<T> other = diagonal[i / Vec<T>::size] * strip.along(1 - view, n, i);
    return fma(coupling, Vec<T>::load(strip.product.at(n, i)), other);
  };
  for (int64_t i = 0; i < strip.columns; i += Vec<T>::size) {
    const int64_t vec = i / Vec<T>::size;
    diagonal[vec] = ColumnMap<T>::statistic(views, kDiagonal + view, strip.column + i);
    scale[vec] = grad * ColumnMap<T>::statistic(views, kScale + view, strip.column + i);
    Vec<T> sum[1];
    sum_rows<T, 1>(views.rows, sum, [&](int64_t n, Vec<T>(&s)[1]) GENSSL_INLINE_LAMBDA {
      s[0] = fma(to_x(n, i), strip.along(view, n, i), s[0]);
    });
    const Vec<T> standard = ColumnMap<T>::statistic(views, kScale + view, strip.column + i);
    mean[vec] = sum[0] / Vec<T>(T(views.rows)) - Vec<T>(args.shift) * standard * standard;
  }
  for (int64_t n = 0; n < views.rows; ++n) {
    T* target = args.grad_z[view] + n * views.columns + strip.column;
    for (int64_t i = 0; i < strip.columns; i += Vec<T>::size) {
      const int64_t vec = i / Vec<T>::size;
      const Vec<T> value = to_x(n, i) - mean[vec] * strip.along(view, n, i);
      store_lanes(scale[vec] * value, target + i, strip.columns - i);
    }
  }
}

template <class T>
void vicreg_strip(const GradientArgs<T>& args, int view, const GradientStrip<T>& strip) {
  const DecorrelationArgs<T>& views = args.views;
  const Vec<T> coupling(args.coupling), invariance(args.invariance), grad(args.grad);
  Vec<T> diagonal[kStripVecs<T>];
  for (int64_t i = 0; i < strip.columns; i += Vec<T>::size) {
    diagonal[i / Vec<T>::size] = ColumnMap<T>::statistic(views, kDiagonal + view, strip.column + i);
  }
  const auto gradient = [&](int64_t n, int64_t i, int64_t lanes, Vec<T> z) GENSSL_INLINE_LAMBDA {
    const int64_t at = n * views.columns + strip.column + i;
    const Vec<T> apart = invariance * (z - load_lanes(views.z[1 - view] + at, lanes));
    const Vec<T> rest = fma(diagonal[i / Vec<T>::size], strip.along(view, n, i), apart);
    const Vec<T> value = fma(coupling, Vec<T>::load(strip.product.at(n, i)), rest);
    store_lanes(grad * value, args.grad_z[view] + at, lanes);
  };
  for_each_of_strip(views, view, views.rows, strip.column, strip.columns, gradient);
}

// What is built of x S in a strip lies in `target` [N, kStripColumns], in panels.
template <class T>
StripTarget<const T> gram_product(const GradientArgs<T>& args, int view, const T* x,
                                  int64_t columns, T* target) {
  const int64_t rows = args.views.rows, size = rows * kPanelColumns<T>;
  const bool crossed = args.views.loss == Decorrelation::barlow_twins;
  for (int64_t i = 0; i < count_panels<T>(columns) * size; i += Vec<T>::size) {
    Vec<T>(T(0)).store(target + i);
  }
  for (int64_t panel = 0; panel < count_panels<T>(columns); ++panel) {
    accumulate<T>({args.gram[crossed ? 1 - view : view], rows, 1}, rows, rows,
                  {x + panel * size, size},
                  smaller(kPanelColumns<T>, columns - panel * kPanelColumns<T>),
                  target + panel * size, kPanelColumns<T>);
  }
  return {target, kPanelColumns<T>, size};
}

template <class T>
void gradient_strip(const GradientArgs<T>& args, int64_t index, T* scratch) {
  const DecorrelationArgs<T>& views = args.views;
  const int64_t size = views.rows * kStripColumns;
  GradientStrip<T> strip;
  strip.column = index * kStripColumns;
  strip.columns = columns_of_strip(views, index);
  for (int view = 0; view < 2; ++view) {
    strip.x[view] = in_panels(scratch + view * size, views.rows);
    normalize(views, view, views.rows, strip.column, strip.columns, strip.x[view], true);
  }
  for (int view = 0; view < 2; ++view) {
    if (args.gram[0]) {
      strip.product =
          gram_product(args, view, strip.x[view].data, strip.columns, scratch + 2 * size);
    } else {
      strip.product = {args.product[view] + strip.column, args.stride, kPanelColumns<T>};
    }
    if (views.loss == Decorrelation::barlow_twins) {
      barlow_twins_strip(args, view, strip);
    } else {
      vicreg_strip(args, view, strip);
    }
  }
}

}  // namespace

template <class T>
int64_t decorrelation_scratch(int64_t rows) {
  const int64_t gram = (rows + kPanelColumns<T>)*kStripColumns;
  const int64_t tiles = kBlockFeatures * (kBlockFeatures + kChunkRows);
  const int64_t gradient = 3 * rows * kStripColumns;
  return larger(larger(gram, tiles), gradient);
}

template <class T>
void decorrelation_statistics(const DecorrelationArgs<T>& args, int64_t begin, int64_t end,
                              T* scratch) {
  for (int64_t strip = begin; strip < end; ++strip) {
    const int64_t column = strip * kStripColumns, columns = columns_of_strip(args, strip);
    for (int view = 0; view < 2; ++view) {
      T* target = scratch + view * args.rows * kStripColumns;
      for_each_of_strip(args, view, args.rows, column, columns,
                        [&](int64_t n, int64_t i, int64_t, Vec<T> z)
                            GENSSL_INLINE_LAMBDA { z.store(target + n * kStripColumns + i); });
    }
    for (int64_t i = 0; i < columns; i += Vec<T>::size) {
      column_statistics(args, scratch + i, column + i);
    }
  }
}

template <class T>
void decorrelation_gram(const GramArgs<T>& args, int64_t begin, int64_t end, T* scratch) {
  for (int64_t unit = begin; unit < end; ++unit) gram_unit(args, unit, scratch);
}

template <class T>
void decorrelation_gram_sum(const GramArgs<T>& args, int64_t begin, int64_t end) {
  for (int64_t panel = begin; panel < end; ++panel) args.products[panel] = sum_panel(args, panel);
}

template <class T>
void decorrelation_normalize(const TileArgs<T>& args, int64_t begin, int64_t end) {
  for (int64_t strip = begin; strip < end; ++strip) {
    const int64_t column = strip * kStripColumns, columns = columns_of_strip(args.views, strip);
    const bool last = column + columns == args.views.columns;
    const int64_t whole = last ? args.stride - column : columns;
    for (int view = 0; view < 2; ++view) {
      normalize(args.views, view, args.views.rows, column, columns,
                row_major(args.x[view] + column, args.stride), true);
      if (!args.product[view]) continue;
      for (int64_t n = 0; n < args.views.rows; ++n) {
        clear_lanes(args.product[view] + n * args.stride + column, whole);
      }
    }
  }
}

template <class T>
void decorrelation_tiles(const TileArgs<T>& args, int64_t round, int64_t begin, int64_t end,
                         T* scratch) {
  const int64_t units = tile_units(args.views.loss, args.blocks);
  for (int64_t unit = begin; unit < end; ++unit) {
    args.squares[round * units + unit] = tile_unit(args, round, unit, scratch);
  }
}

template <class T>
void decorrelation_gradient(const GradientArgs<T>& args, int64_t begin, int64_t end, T* scratch) {
  for (int64_t strip = begin; strip < end; ++strip) gradient_strip(args, strip, scratch);
}

#define GENSSL_INSTANTIATE(T)                                                                \
  template int64_t decorrelation_scratch<T>(int64_t);                                        \
  template void decorrelation_statistics(const DecorrelationArgs<T>&, int64_t, int64_t, T*); \
  template void decorrelation_gram(const GramArgs<T>&, int64_t, int64_t, T*);                \
  template void decorrelation_gram_sum(const GramArgs<T>&, int64_t, int64_t);                \
  template void decorrelation_normalize(const TileArgs<T>&, int64_t, int64_t);               \
  template void decorrelation_tiles(const TileArgs<T>&, int64_t, int64_t, int64_t, T*);      \
  template void decorrelation_gradient(const GradientArgs<T>&, int64_t, int64_t, T*);
GENSSL_INSTANTIATE(float)
GENSSL_INSTANTIATE(double)
#undef GENSSL_INSTANTIATE

}  // namespace genssl::GENSSL_ISA
