#include "kernels/contrast/pair_block.h"

namespace genssl::GENSSL_ISA {
namespace {

// log(1 + e^u) and its slope, from one exponential.
template <class T>
struct Softplus {
  Vec<T> value, slope;
};
template <class T>
GENSSL_INLINE Softplus<T> softplus_and_slope(Vec<T> u) {
  const Vec<T> zero(T(0)), one(T(1)), power = exp(-abs(u)), whole = one / (one + power);
  return {max(u, zero) + log1p_of_unit(power), select(u < zero, power * whole, whole)};
}

template <class T, bool GRADIENTS>
void run(const SigmoidPairsArgs& args, void* scratch, BlockPair pair) {
  const PairShape& shape = args.gradient.pairs.shape;
  // Equal ids are pairs that belong together here: the scores know nothing of them.
  PairArgs pairs = args.gradient.pairs;
  const auto* row_ids = typed<Id<T>>(pairs.row_ids);
  const auto* column_ids = typed<Id<T>>(pairs.column_ids);
  pairs.row_ids = pairs.column_ids = nullptr;
  const Vec<T> bias(static_cast<T>(args.bias));
  const Block<T> block = block_of(shape, pair, typed<T>(scratch));
  Vec<T> loss(T(0));
  for_each_score<T>(
      pairs, block, [&](int64_t r, int64_t n, int64_t lanes, Vec<T> score) GENSSL_INLINE_LAMBDA {
        const auto same = load_ids<T>(column_ids + n, lanes) == row_ids[r];
        const Vec<T> biased = score + bias;
        const Softplus<T> of = softplus_and_slope(select(same, -biased, biased));
        // Past the columns the score is -infinity, that of an id by chance infinity.
        loss = loss + select(score == Vec<T>(kMinusInfinity<T>), Vec<T>(T(0)), of.value);
        if (GRADIENTS) select(same, -of.slope, of.slope).store(block.at(r, n));
      });
  const int64_t row = block.row / shape.row_block;
  args.loss[row] += sum_in_order(loss);
  if (!GRADIENTS) return;
  for (int64_t r = block.row; r < block.row_end; ++r) {
    Vec<T> sum(T(0));
    for (int64_t n = block.column; n < block.column_end; n += Vec<T>::size) {
      sum = sum + load_lanes(block.at(r, n), block.column_end - n);
    }
    args.to_bias[row] += sum_in_order(sum);
  }
  accumulate_gradients(args.gradient, block, true);
}

template <class T>
void run(const SigmoidPairsArgs& args, void* scratch, BlockPair pair) {
  args.to_bias ? run<T, true>(args, scratch, pair) : run<T, false>(args, scratch, pair);
}

}  // namespace

void sigmoid_pairs(const SigmoidPairsArgs& args, void* scratch, BlockPair pair) {
  args.gradient.pairs.is_double ? run<double>(args, scratch, pair)
                                : run<float>(args, scratch, pair);
}

}  // namespace genssl::GENSSL_ISA
