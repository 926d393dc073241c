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

// What is found of a block's rows or columns: maxima, also over earlier blocks, and the sums of
// e^(s - origin).
template <class T>
struct Reduced {
  T *largest, *origins, *sums;  // by position in the block

  Reduced(T* memory, int64_t count)
      : largest(memory), origins(memory + count), sums(memory + 2 * count) {}
};

template <class T>
struct Reductions {
  T* lanes;  // [rows, a register]
  Reduced<T> rows, columns;

  Reductions(const PairShape& shape, T* memory)
      : lanes(memory),
        rows(lanes + shape.row_block * Vec<T>::size, shape.row_block),
        columns(rows.sums + shape.row_block, shape.column_block) {}
};

// One number of every row from its register, whose lanes are joined in order.
template <class T, class Join>
void join_lanes(const T* lanes, int64_t rows, T* target, const Join& join) {
  constexpr int size = Vec<T>::size;
  for (int64_t r = 0; r < rows; r += size) {
    Vec<T> square[size];
#pragma GCC unroll 16
    for (int i = 0; i < size; ++i) square[i] = Vec<T>::load(lanes + (r + i) * size);
    transpose<T>(square);
    Vec<T> joined = square[0];
#pragma GCC unroll 16
    for (int i = 1; i < size; ++i) joined = join(joined, square[i]);
    joined.store(target + r);
  }
}

template <class T>
void copy_numbers(const T* source, int64_t count, T* target) {
  for (int64_t i = 0; i < count; i += Vec<T>::size) {
    load_lanes(source + i, count - i).store(target + i);
  }
}

template <class T>
void find_maxima(const LogSumExpArgs& args, const Block<T>& block, bool of_columns,
                 const Reductions<T>& found) {
  if (of_columns) {
    copy_numbers(typed<T>(args.column_max) + block.column, block.columns(), found.columns.largest);
  }
  for (int64_t r = 0; r < block.rows(); ++r) {
    const T* scores = block.numbers + r * block.stride;
    Vec<T> largest(kMinusInfinity<T>);
    for (int64_t n = 0; n < block.columns(); n += Vec<T>::size) {
      const Vec<T> score = Vec<T>::load(scores + n);
      largest = max(largest, score);
      if (!of_columns) continue;
      max(Vec<T>::load(found.columns.largest + n), score).store(found.columns.largest + n);
    }
    largest.store(found.lanes + r * Vec<T>::size);
  }
  const auto larger_of = [](Vec<T> a, Vec<T> b) GENSSL_INLINE_LAMBDA { return max(a, b); };
  join_lanes(found.lanes, block.rows(), found.rows.largest, larger_of);
  const T* before = typed<T>(args.row_max) + block.row;
  for (int64_t i = 0; i < block.rows(); i += Vec<T>::size) {
    const Vec<T> largest = Vec<T>::load(found.rows.largest + i);
    max(load_lanes(before + i, block.rows() - i), largest).store(found.rows.largest + i);
  }
}

// Sums of e^(s - origin) of ROWS rows, and with `of_columns` of columns, of which those are a part.
template <class T, int ROWS>
GENSSL_INLINE void sum_rows(const Block<T>& block, int64_t r, bool of_columns,
                            const Reductions<T>& found) {
  Vec<T> origin[ROWS], sum[ROWS];
  for (int i = 0; i < ROWS; ++i) {
    origin[i] = Vec<T>(found.rows.origins[r + i]);
    sum[i] = Vec<T>(T(0));
  }
  const T* scores = block.numbers + r * block.stride;
  for (int64_t n = 0; n < block.columns(); n += Vec<T>::size) {
    Vec<T> of_column(T(0));
    for (int i = 0; i < ROWS; ++i) {
      const Vec<T> power = exp(Vec<T>::load(scores + i * block.stride + n) - origin[i]);
      sum[i] = sum[i] + power;
      of_column = of_column + power;
    }
    if (!of_columns) continue;
    (Vec<T>::load(found.columns.sums + n) + of_column).store(found.columns.sums + n);
  }
  for (int i = 0; i < ROWS; ++i) sum[i].store(found.lanes + (r + i) * Vec<T>::size);
}

template <class T>
void sum_block(const Block<T>& block, bool of_columns, const Reductions<T>& found) {
  if (of_columns) clear_lanes(found.columns.sums, block.columns());
  int64_t r = 0;
  for (; r + 4 <= block.rows(); r += 4) sum_rows<T, 4>(block, r, of_columns, found);
  for (; r < block.rows(); ++r) sum_rows<T, 1>(block, r, of_columns, found);
  const auto sum = [](Vec<T> a, Vec<T> b) GENSSL_INLINE_LAMBDA { return a + b; };
  join_lanes(found.lanes, block.rows(), found.rows.sums, sum);
}

// Each column relative to its own maximum.
template <class T>
void sum_columns(const Block<T>& block, const Reduced<T>& columns) {
  for (int64_t n = 0; n < block.columns(); n += Vec<T>::size) {
    const Vec<T> origin = Vec<T>::load(columns.origins + n);
    const auto power = [&](Vec<T> score) GENSSL_INLINE_LAMBDA { return exp(score - origin); };
    sum_over_rows(block, block.column + n, power).store(columns.sums + n);
  }
}

// Online sums of e^(s - max): the old ones are brought to the new maxima.
template <class T>
void add_sums(const Reduced<T>& found, int64_t count, T* max_of, double* sum_of) {
  for (int64_t i = 0; i < count; i += Vec<T>::size) {
    const int64_t lanes = count - i;
    const Vec<T> largest = Vec<T>::load(found.largest + i), origin = finite_or_zero(largest);
    const Vec<T> rescaled = exp(load_lanes(max_of + i, lanes) - origin);
    const Vec<T> factor = exp(Vec<T>::load(found.origins + i) - origin);
    const Vec<T> sum = factor * Vec<T>::load(found.sums + i);
    store_lanes(largest, max_of + i, lanes);
    for (int64_t lane = 0; lane < smaller(lanes, Vec<T>::size); ++lane) {
      sum_of[i + lane] = sum_of[i + lane] * rescaled[lane] + sum[lane];
    }
  }
}

// Maxima and log sums that differ by no more leave the product of exponentials as many digits as
// each has.
constexpr double kNear = 16;

template <class T>
struct Range {
  T low = -kMinusInfinity<T>, high = kMinusInfinity<T>;

  void include(const T* numbers, int64_t count) {
    for (int64_t i = 0; i < count; ++i) {
      low = numbers[i] < low ? numbers[i] : low;
      high = numbers[i] > high ? numbers[i] : high;
    }
  }
  bool is_narrow() const { return high - low <= T(kNear); }
  T center() const { return (low + high) / 2; }
};

template <class T>
void reduce(const LogSumExpArgs& args, const Block<T>& block, bool of_columns,
            const Reductions<T>& found) {
  find_maxima(args, block, of_columns, found);
  Range<T> range;
  range.include(found.rows.largest, block.rows());
  if (of_columns) range.include(found.columns.largest, block.columns());
  // One exponential then serves a row and a column.
  const bool once = of_columns && range.is_narrow();
  const auto find_origins = [&](const Reduced<T>& side, int64_t count) {
    for (int64_t i = 0; i < count; i += Vec<T>::size) {
      const Vec<T> own = finite_or_zero(Vec<T>::load(side.largest + i));
      (once ? Vec<T>(range.center()) : own).store(side.origins + i);
    }
  };
  find_origins(found.rows, block.rows());
  sum_block(block, once, found);
  add_sums(found.rows, block.rows(), typed<T>(args.row_max) + block.row, args.row_sum + block.row);
  if (!of_columns) return;
  find_origins(found.columns, block.columns());
  if (!once) sum_columns(block, found.columns);
  add_sums(found.columns, block.columns(), typed<T>(args.column_max) + block.column,
           args.column_sum + block.column);
}

// Scores that no cache holds until the backward pass go around them.
constexpr int64_t kCachedBytes = 16 << 20;

template <class T>
void keep_scores(const PairShape& shape, const Block<T>& block, T* scores) {
  const int64_t row_bytes = shape.columns * sizeof(T);
  const bool whole = block.columns() % Vec<T>::size == 0 && row_bytes % kVecBytes == 0 &&
                     reinterpret_cast<uintptr_t>(scores) % kVecBytes == 0;
  const bool streamed = whole && shape.rows * row_bytes > kCachedBytes;
  for (int64_t r = block.row; r < block.row_end; ++r) {
    const T* source = block.at(r, block.column);
    T* target = scores + r * shape.columns + block.column;
    if (!streamed) {
      copy_lanes(source, block.columns(), target);
      continue;
    }
    for (int64_t n = 0; n < block.columns(); n += Vec<T>::size) {
      store_streaming(Vec<T>::load(source + n), target + n);
    }
  }
  finish_streaming();
}

template <class T>
void run(const LogSumExpArgs& args, void* scratch, BlockPair pair) {
  const PairShape& shape = args.pairs.shape;
  const Reductions<T> found(shape, beside_block<T>(shape, scratch));
  const Block<T> block = block_of(shape, pair, typed<T>(scratch));
  const bool on_diagonal = is_on_diagonal(shape, pair);
  for_each_score<T>(args.pairs, block,
                    [&](int64_t r, int64_t n, int64_t, Vec<T> score)
                        GENSSL_INLINE_LAMBDA { score.store(block.at(r, n)); });
  reduce(args, block, args.column_max && !on_diagonal, found);
  if (args.scores) keep_scores(shape, block, typed<T>(args.scores));
}

// Scores computed, or read where they were kept.
template <class T, class Element>
void for_each_known_score(const LogSumExpBackwardArgs& args, const Block<T>& block,
                          const Element& element) {
  const PairArgs& pairs = args.gradient.pairs;
  if (!args.scores) return for_each_score<T>(pairs, block, element);
  const int64_t stride = pairs.shape.columns;
  const T* scores = typed<T>(args.scores);
  const Ids<T> lane_number = lane_numbers<T>();
  for (int64_t r = block.row; r < block.row_end; ++r) {
    fetch_rows(scores + (r + 4) * stride + block.column, block.columns(), 0, r + 4 < block.row_end);
    for (int64_t n = block.column; n < block.column_end; n += Vec<T>::size) {
      const int64_t lanes = block.column_end - n;
      Vec<T> score = load_lanes(scores + r * stride + n, lanes);
      if (lanes < Vec<T>::size) {
        const auto inside = lane_number < static_cast<Id<T>>(lanes);
        score = select(inside, score, Vec<T>(kMinusInfinity<T>));
      }
      element(r, n, lanes, score);
    }
  }
}

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
  Range<T> range;
  range.include(rows + block.row, block.rows());
  range.include(columns + block.column, block.columns());
  if (!range.is_narrow()) return false;
  const Vec<T> center(range.center());
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
  for_each_known_score<T>(
      args, block, [&](int64_t r, int64_t n, int64_t lanes, Vec<T> score) GENSSL_INLINE_LAMBDA {
        const Vec<T> of_row(factors.of_rows[r - block.row]);
        const Vec<T> of_column = load_lanes(factors.of_columns + (n - block.column), lanes);
        const Vec<T> both = fma(of_row, of_column, Vec<T>(grad_rows[r]));
        (both * exp(score - Vec<T>(rows[r]))).store(block.at(r, n));
      });
}

// Weights of rows and columns with an exponential for each.
template <class T>
void weigh_twice(const LogSumExpBackwardArgs& args, const Block<T>& block) {
  const T *grad_rows = typed<T>(args.grad_rows), *rows = typed<T>(args.rows);
  const T *grad_columns = typed<T>(args.grad_columns), *columns = typed<T>(args.columns);
  for_each_known_score<T>(
      args, block, [&](int64_t r, int64_t n, int64_t lanes, Vec<T> score) GENSSL_INLINE_LAMBDA {
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
void run_backward(const LogSumExpBackwardArgs& args, void* scratch, BlockPair pair) {
  const PairShape& shape = args.gradient.pairs.shape;
  T* beside = beside_block<T>(shape, scratch);
  const Block<T> block = block_of(shape, pair, typed<T>(scratch));
  const bool on_diagonal = is_on_diagonal(shape, pair);
  weigh(args, block, beside);
  add_weights(args.gradient, block, !on_diagonal);
  accumulate_gradients(args.gradient, block, args.gradient.to_y && !on_diagonal);
}

}  // namespace

void logsumexp_pairs(const LogSumExpArgs& args, void* scratch, BlockPair pair) {
  args.pairs.is_double ? run<double>(args, scratch, pair) : run<float>(args, scratch, pair);
}

void logsumexp_pairs_backward(const LogSumExpBackwardArgs& args, void* scratch, BlockPair pair) {
  args.gradient.pairs.is_double ? run_backward<double>(args, scratch, pair)
                                : run_backward<float>(args, scratch, pair);
}

}  // namespace genssl::GENSSL_ISA
