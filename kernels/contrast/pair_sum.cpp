#include "kernels/contrast/pair_block.h"

namespace genssl::GENSSL_ISA {
namespace {

template <class T, Psi PSI>
GENSSL_INLINE Vec<T> psi_of(Vec<T> u) {
  if constexpr (PSI == Psi::softplus) return softplus(u);
  if constexpr (PSI == Psi::hinge) return max(u, Vec<T>(T(0)));  // a NaN stays
  if constexpr (PSI == Psi::sigmoid) return sigmoid(u);
  return u * u;
}

template <class T, Psi PSI>
GENSSL_INLINE Vec<T> slope_of(Vec<T> u) {
  const Vec<T> zero(T(0)), one(T(1));
  if constexpr (PSI == Psi::softplus) return sigmoid(u);
  if constexpr (PSI == Psi::hinge) return select(u > zero, one, zero);
  if constexpr (PSI == Psi::sigmoid) {
    const Vec<T> power = exp(-abs(u)), whole = one / (one + power);
    return power * whole * whole;
  }
  return u + u;
}

template <class T>
GENSSL_INLINE Vec<T> where_kept(Vec<T> score, Vec<T> value) {
  return select(score == Vec<T>(kMinusInfinity<T>), Vec<T>(T(0)), value);
}

// Each score counts in its row and, off the diagonal, in the row of its column.
template <class T, Psi PSI>
void run(const PairSumArgs& args, void* scratch, BlockPair pair) {
  const T* shift = typed<T>(args.shift);
  T* sums = typed<T>(args.sums);
  const Block<T> block = block_of(args.pairs.shape, pair, typed<T>(scratch));
  const bool on_diagonal = is_on_diagonal(args.pairs.shape, pair);
  for_each_score<T>(args.pairs, block,
                    [&](int64_t r, int64_t n, int64_t, Vec<T> score)
                        GENSSL_INLINE_LAMBDA { score.store(block.at(r, n)); });
  for (int64_t r = block.row; r < block.row_end; ++r) {
    Vec<T> sum(T(0));
    for (int64_t n = block.column; n < block.column_end; n += Vec<T>::size) {
      const Vec<T> score = Vec<T>::load(block.at(r, n));
      sum = sum + where_kept(score, psi_of<T, PSI>(Vec<T>(shift[r]) + score));
    }
    sums[r] += sum_in_order(sum);
  }
  if (on_diagonal) return;
  for (int64_t n = block.column; n < block.column_end; n += Vec<T>::size) {
    const int64_t lanes = block.column_end - n;
    const Vec<T> column_shift = load_lanes(shift + n, lanes);
    const Vec<T> sum = sum_over_rows(block, n, [&](Vec<T> score) GENSSL_INLINE_LAMBDA {
      return where_kept(score, psi_of<T, PSI>(column_shift + score));
    });
    store_lanes(load_lanes(sums + n, lanes) + sum, sums + n, lanes);
  }
}

// Weights A_ij = g_i psi'(shift_i + s_ij) of rows and A_ji of columns; the block keeps their sum.
template <class T, Psi PSI>
void weigh(const PairSumBackwardArgs& args, const Block<T>& block, bool on_diagonal, T* row_lanes) {
  constexpr int size = Vec<T>::size;
  const T *shift = typed<T>(args.shift), *grad = typed<T>(args.grad);
  T* to_shift = typed<T>(args.to_shift);
  clear_lanes(row_lanes, block.rows() * size);
  for_each_score<T>(
      args.gradient.pairs, block,
      [&](int64_t r, int64_t n, int64_t lanes, Vec<T> score) GENSSL_INLINE_LAMBDA {
        const Vec<T> of_row =
            where_kept(score, Vec<T>(grad[r]) * slope_of<T, PSI>(Vec<T>(shift[r]) + score));
        const Vec<T> of_column =
            where_kept(score, load_lanes(grad + n, lanes) *
                                  slope_of<T, PSI>(load_lanes(shift + n, lanes) + score));
        T* row_sum = row_lanes + (r - block.row) * size;
        (Vec<T>::load(row_sum) + of_row).store(row_sum);
        if (!on_diagonal) {
          store_lanes(load_lanes(to_shift + n, lanes) + of_column, to_shift + n, lanes);
        }
        (of_row + of_column).store(block.at(r, n));
      });
  for (int64_t r = block.row; r < block.row_end; ++r) {
    to_shift[r] += sum_in_order(Vec<T>::load(row_lanes + (r - block.row) * size));
  }
}

template <class T, Psi PSI>
void run_backward(const PairSumBackwardArgs& args, void* scratch, BlockPair pair) {
  const PairShape& shape = args.gradient.pairs.shape;
  T* row_lanes = beside_block<T>(shape, scratch);
  const Block<T> block = block_of(shape, pair, typed<T>(scratch));
  const bool on_diagonal = is_on_diagonal(shape, pair);
  weigh<T, PSI>(args, block, on_diagonal, row_lanes);
  add_weights(args.gradient, block, !on_diagonal);
  accumulate_gradients(args.gradient, block, !on_diagonal);
}

template <class Run>
void with_psi(Psi psi, const Run& run) {
  switch (psi) {
    case Psi::softplus:
      return run.template operator()<Psi::softplus>();
    case Psi::hinge:
      return run.template operator()<Psi::hinge>();
    case Psi::sigmoid:
      return run.template operator()<Psi::sigmoid>();
    case Psi::quadratic:
      return run.template operator()<Psi::quadratic>();
  }
}

}  // namespace

void pair_sum(const PairSumArgs& args, void* scratch, BlockPair pair) {
  with_psi(args.psi, [&]<Psi PSI>() {
    args.pairs.is_double ? run<double, PSI>(args, scratch, pair)
                         : run<float, PSI>(args, scratch, pair);
  });
}

void pair_sum_backward(const PairSumBackwardArgs& args, void* scratch, BlockPair pair) {
  with_psi(args.psi, [&]<Psi PSI>() {
    args.gradient.pairs.is_double ? run_backward<double, PSI>(args, scratch, pair)
                                  : run_backward<float, PSI>(args, scratch, pair);
  });
}

}  // namespace genssl::GENSSL_ISA
