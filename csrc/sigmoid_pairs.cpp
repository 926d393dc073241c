#include <tuple>

#include "csrc/pair_problem.h"

namespace genssl {
namespace {

double sum_of(const std::vector<double>& parts) {
  return std::accumulate(parts.begin(), parts.end(), 0.0);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> sigmoid_pairs(Tensor x, Tensor y, Tensor scale,
                                                                 Tensor bias, Tensor row_ids,
                                                                 Tensor column_ids,
                                                                 bool gradients) {
  PairProblem problem(x, y, scale, {std::nullopt, std::nullopt, row_ids, column_ids}, false);
  const PairShape& shape = problem.shape();
  problem.pack(true, gradients, gradients);
  Tensor to_x = gradients ? problem.gradient_sums(shape.rows) : problem.nothing();
  Tensor to_y = gradients ? problem.gradient_sums(shape.columns) : problem.nothing();
  std::vector<double> loss(pair_blocks(shape.rows, shape.row_block)), to_bias(loss.size());
  const SigmoidPairsArgs args{{problem.args(), data_of(to_x, gradients), data_of(to_y, gradients),
                               problem.gradient_stride(), nullptr, nullptr},
                              number_of(bias),
                              loss.data(),
                              gradients ? to_bias.data() : nullptr};
  problem.run(
      [&](void* scratch, BlockPair pair) { GENSSL_DISPATCH(sigmoid_pairs)(args, scratch, pair); });
  const Tensor total = problem.scalar(sum_of(loss));
  if (!gradients) {
    return {total, as_type_of(to_x, x), as_type_of(to_y, y), problem.nothing(), problem.nothing()};
  }
  double to_scale;
  std::tie(to_x, to_scale) = problem.finish(to_x, true, true);
  to_y = problem.finish(to_y, false, true).first;
  return {total, as_type_of(to_x, x), as_type_of(to_y, y), problem.scalar(to_scale),
          problem.scalar(sum_of(to_bias))};
}

}  // namespace
}  // namespace genssl

STABLE_TORCH_LIBRARY_IMPL(genssl_fast, CPU, m) {
  m.impl("_sigmoid_pairs", TORCH_BOX(&genssl::sigmoid_pairs));
}
