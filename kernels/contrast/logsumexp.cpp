#include "kernels/contrast/pair_block.h"

namespace genssl::GENSSL_ISA {
namespace {

// What exponents are relative to: finite even where nothing has been summed.
template <class T>
GENSSL_INLINE T finite_or_zero(T value) {
  return value == kMinusInfinity<T> ? T(0) : value;
}
template <class T>
GENSSL_INLINE Vec<T> finite_or_zero(Vec<T> value) {
  return select(value == Vec<T>(kMinusInfinity<T>), Vec<T>(T(0)), value);
}

// Online sums of e^(s - max): the old one is brought to the new maximum.
template <class T>
void reduce_rows(const Block<T>& block, T* max_of, double* sum_of) {
  const int64_t end = block.column_end;
  for (int64_t r = block.row; r < block.row_end; ++r) {
    Vec<T> largest(kMinusInfinity<T>);
    for (int64_t n = block.column; n < end; n += Vec<T>::size) {
      largest = max(largest, Vec<T>::load(block.at(r, n)));
    }
    const T before = max_of[r], row_max = highest_lane(largest);
    const T after = row_max > before ? row_max : before, origin = finite_or_zero(after);
    Vec<T> sum(T(0));
    for (int64_t n = block.column; n < end; n += Vec<T>::size) {
      sum = sum + exp(Vec<T>::load(block.at(r, n)) - Vec<T>(origin));
    }
    max_of[r] = after;
    sum_of[r] = sum_of[r] * exp(Vec<T>(before - origin))[0] + sum_in_order(sum);
  }
}

template <class T>
void reduce_columns(const Block<T>& block, T* max_of, double* sum_of) {
  for (int64_t n = block.column; n < block.column_end; n += Vec<T>::size) {
    const int64_t lanes = block.column_end - n;
    const Vec<T> before = load_lanes(max_of + n, lanes);
    Vec<T> after = before;
    for (int64_t r = block.row; r < block.row_end; ++r) {
      after = max(after, Vec<T>::load(block.at(r, n)));
    }
    const Vec<T> origin = finite_or_zero(after), rescaled = exp(before - origin);
    const Vec<T> sum = sum_over_rows(
        block, n, [&](Vec<T> score) GENSSL_INLINE_LAMBDA { return exp(score - origin); });
    store_lanes(after, max_of + n, lanes);
    for (int64_t lane = 0; lane < smaller(lanes, Vec<T>::size); ++lane) {
      sum_of[n + lane] = sum_of[n + lane] * rescaled[lane] + sum[lane];
    }
  }
}

template <class T>
void run(const LogSumExpArgs& args, void* scratch, int64_t round, int64_t begin, int64_t end) {
  for_each_task<T>(args.pairs.shape, scratch, round, begin, end,
                   [&](const Block<T>& block, bool on_diagonal) {
                     for_each_score<T>(args.pairs, block,
                                       [&](int64_t r, int64_t n, int64_t, Vec<T> score)
                                           GENSSL_INLINE_LAMBDA { score.store(block.at(r, n)); });
                     reduce_rows(block, typed<T>(args.row_max), args.row_sum);
                     if (args.column_max && !on_diagonal) {
                       reduce_columns(block, typed<T>(args.column_max), args.column_sum);
                     }
                   });
}

// Log sums that differ by no more leave the product of exponentials as many digits as each has.
constexpr double kNearLogSums = 16;

// e^(rows - c) and grad_columns e^(c - columns) of a block, for which both are near c.
template <class T>
struct Factors {
  T *of_rows, *of_columns;  // by position in the block
};

// Whether one exponential serves a row and a column; if so, what it is multiplied with.
template <class T>
bool find_factors(const LogSumExpBackwardArgs& args, const Block<T>& block,
                  const Factors<T>& factors) {
  const T *rows = typed<T>(args.rows), *columns = typed<T>(args.columns);
  const T* grad_columns = typed<T>(args.grad_columns);
  T low = rows[block.row], high = low;
  const auto include = [&](T value) {
    low = value < low ? value : low;
    high = value > high ? value : high;
  };
  for (int64_t r = block.row; r < block.row_end; ++r) include(rows[r]);
  for (int64_t n = block.column; n < block.column_end; ++n) include(columns[n]);
  if (!(high - low <= T(kNearLogSums))) return false;
  const Vec<T> center((low + high) / 2);
  for (int64_t i = 0; i < block.rows(); i += Vec<T>::size) {
    const int64_t lanes = block.rows() - i;
    store_lanes(exp(load_lanes(rows + block.row + i, lanes) - center), factors.of_rows + i, lanes);
  }
  for (int64_t i = 0; i < block.columns(); i += Vec<T>::size) {
    const int64_t lanes = block.columns() - i, n = block.column + i;
    const Vec<T> factor = exp(center - load_lanes(columns + n, lanes));
    store_lanes(load_lanes(grad_columns + n, lanes) * factor, factors.of_columns + i, lanes);
  }
  return true;
}

// e^(s - rows) (grad_rows + e^(rows - c) grad_columns e^(c - columns)).
template <class T>
void weigh_once(const LogSumExpBackwardArgs& args, const Block<T>& block,
                const Factors<T>& factors) {
  const T *grad_rows = typed<T>(args.grad_rows), *rows = typed<T>(args.rows);
  for_each_score<T>(args.gradient.pairs, block,
                    [&](int64_t r, int64_t n, int64_t lanes, Vec<T> score) GENSSL_INLINE_LAMBDA {
                      const Vec<T> of_row(factors.of_rows[r - block.row]);
                      const Vec<T> of_column =
                          load_lanes(factors.of_columns + (n - block.column), lanes);
                      const Vec<T> both = fma(of_row, of_column, Vec<T>(grad_rows[r]));
                      (both * exp(score - Vec<T>(rows[r]))).store(block.at(r, n));
                    });
}

// Weights of rows and columns with an exponential for each.
template <class T>
void weigh_twice(const LogSumExpBackwardArgs& args, const Block<T>& block) {
  const T *grad_rows = typed<T>(args.grad_rows), *rows = typed<T>(args.rows);
  const T *grad_columns = typed<T>(args.grad_columns), *columns = typed<T>(args.columns);
  for_each_score<T>(args.gradient.pairs, block,
                    [&](int64_t r, int64_t n, int64_t lanes, Vec<T> score) GENSSL_INLINE_LAMBDA {
                      Vec<T> weight = Vec<T>(grad_rows[r]) * exp(score - Vec<T>(rows[r]));
                      if (grad_columns) {
                        const Vec<T> of_column = exp(score - load_lanes(columns + n, lanes));
                        weight = fma(load_lanes(grad_columns + n, lanes), of_column, weight);
                      }
                      weight.store(block.at(r, n));
                    });
}

template <class T>
void weigh(const LogSumExpBackwardArgs& args, const Block<T>& block, T* scratch) {
  const Factors<T> factors{scratch, scratch + args.gradient.pairs.shape.row_block};
  if (args.grad_columns && find_factors(args, block, factors)) {
    weigh_once(args, block, factors);
  } else {
    weigh_twice(args, block);
  }
}

template <class T>
void run_backward(const LogSumExpBackwardArgs& args, void* scratch, int64_t round, int64_t begin,
                  int64_t end) {
  const PairShape& shape = args.gradient.pairs.shape;
  T* beside = typed<T>(scratch) + shape.row_block * block_stride<T>(shape);
  for_each_task<T>(shape, scratch, round, begin, end, [&](const Block<T>& block, bool on_diagonal) {
    weigh(args, block, beside);
    add_weights(args.gradient, block, !on_diagonal);
    accumulate_gradients(args.gradient, block, args.gradient.to_y && !on_diagonal);
  });
}

}  // namespace

void logsumexp_pairs(const LogSumExpArgs& args, void* scratch, int64_t round, int64_t begin,
                     int64_t end) {
  args.pairs.is_double ? run<double>(args, scratch, round, begin, end)
                       : run<float>(args, scratch, round, begin, end);
}

void logsumexp_pairs_backward(const LogSumExpBackwardArgs& args, void* scratch, int64_t round,
                              int64_t begin, int64_t end) {
  args.gradient.pairs.is_double ? run_backward<double>(args, scratch, round, begin, end)
                                : run_backward<float>(args, scratch, round, begin, end);
}

}  // namespace genssl::GENSSL_ISA
