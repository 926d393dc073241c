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
void reduce_rows(const Block<T>& block, T* max_of, T* sum_of) {
  const int64_t end = block.column_end;
  for (int64_t r = block.row; r < block.row_end; ++r) {
    Vec<T> largest(kMinusInfinity<T>);
    for (int64_t n = block.column; n < end; n += Vec<T>::size) {
      largest = max(largest, Vec<T>::load(block.at(r, n)));
    }
    const T before = max_of[r], row_max = max_of_lanes(largest);
    const T after = row_max > before ? row_max : before, origin = finite_or_zero(after);
    Vec<T> sum(T(0));
    for (int64_t n = block.column; n < end; n += Vec<T>::size) {
      sum = sum + exp(Vec<T>::load(block.at(r, n)) - Vec<T>(origin));
    }
    max_of[r] = after;
    sum_of[r] = sum_of[r] * exp(Vec<T>(before - origin))[0] + sum_of_lanes(sum);
  }
}

template <class T>
void reduce_columns(const Block<T>& block, T* max_of, T* sum_of) {
  for (int64_t n = block.column; n < block.column_end; n += Vec<T>::size) {
    const int64_t lanes = block.column_end - n;
    const Vec<T> before = load_lanes(max_of + n, lanes);
    Vec<T> after = before;
    for (int64_t r = block.row; r < block.row_end; ++r) {
      after = max(after, Vec<T>::load(block.at(r, n)));
    }
    const Vec<T> origin = finite_or_zero(after);
    Vec<T> sum = load_lanes(sum_of + n, lanes) * exp(before - origin);
    for (int64_t r = block.row; r < block.row_end; ++r) {
      sum = sum + exp(Vec<T>::load(block.at(r, n)) - origin);
    }
    store_lanes(after, max_of + n, lanes);
    store_lanes(sum, sum_of + n, lanes);
  }
}

template <class T>
void run(const LogSumExpArgs& args, void* scratch, int64_t round, int64_t begin, int64_t end) {
  for_each_task<T>(args.pairs.shape, scratch, round, begin, end,
                   [&](const Block<T>& block, bool on_diagonal) {
                     for_each_score<T>(args.pairs, block,
                                       [&](int64_t r, int64_t n, int64_t, Vec<T> score)
                                           GENSSL_INLINE_LAMBDA { score.store(block.at(r, n)); });
                     reduce_rows(block, typed<T>(args.row_max), typed<T>(args.row_sum));
                     if (args.column_max && !on_diagonal) {
                       reduce_columns(block, typed<T>(args.column_max), typed<T>(args.column_sum));
                     }
                   });
}

// Weights of rows and columns with an exponential for each.
template <class T>
void weigh(const LogSumExpBackwardArgs& args, const Block<T>& block) {
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
void run_backward(const LogSumExpBackwardArgs& args, void* scratch, int64_t round, int64_t begin,
                  int64_t end) {
  for_each_task<T>(args.gradient.pairs.shape, scratch, round, begin, end,
                   [&](const Block<T>& block, bool on_diagonal) {
                     weigh(args, block);
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
