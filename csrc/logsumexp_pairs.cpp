#include <tuple>

#include "csrc/pair_problem.h"

namespace genssl {
namespace {

// max + log(sum), -infinity where nothing was summed.
Tensor log_of(const Tensor& max_of, const std::vector<double>& sums) {
  Tensor result = new_empty_like(max_of);
  const auto run = [&](auto zero) {
    using T = decltype(zero);
    const T* largest = static_cast<const T*>(max_of.const_data_ptr());
    T* target = static_cast<T*>(result.mutable_data_ptr());
    for (int64_t i = 0; i < result.numel(); ++i) {
      target[i] = static_cast<T>(largest[i] + std::log(sums[i]));
    }
  };
  max_of.scalar_type() == ScalarType::Double ? run(0.0) : run(0.0f);
  return result;
}

std::tuple<Tensor, Tensor, Tensor> reduce(PairProblem& problem, bool columns, bool keep) {
  constexpr double kNone = -std::numeric_limits<double>::infinity();
  const PairShape& shape = problem.shape();
  problem.pack(true, false, false);
  Tensor row_max = problem.vector(shape.rows, kNone);
  Tensor column_max = shape.gram ? row_max : problem.vector(columns ? shape.columns : 0, kNone);
  std::vector<double> row_sum(shape.rows), of_columns(column_max.numel());
  std::vector<double>& column_sum = shape.gram ? row_sum : of_columns;
  Tensor scores = problem.scores(keep);
  const LogSumExpArgs args{problem.args(),    row_max.mutable_data_ptr(),
                           row_sum.data(),    data_of(column_max, columns),
                           column_sum.data(), data_of(scores, keep)};
  problem.run([&](void* scratch, BlockPair pair) {
    GENSSL_DISPATCH(logsumexp_pairs)(args, scratch, pair);
  });
  return {log_of(row_max, row_sum), log_of(column_max, column_sum), scores};
}

std::tuple<Tensor, Tensor, Tensor> pair_logsumexp(Tensor x, Tensor y, Tensor scale,
                                                  OptionalTensor row_bias,
                                                  OptionalTensor column_bias,
                                                  OptionalTensor row_ids, OptionalTensor column_ids,
                                                  bool columns, bool keep) {
  PairProblem problem(x, y, scale, {row_bias, column_bias, row_ids, column_ids}, false);
  return reduce(problem, columns, keep);
}

std::tuple<Tensor, Tensor, Tensor, Tensor, Tensor> pair_logsumexp_backward(
    Tensor grad_rows, Tensor grad_columns, Tensor rows, Tensor columns, Tensor scores, Tensor x,
    Tensor y, Tensor scale, OptionalTensor row_bias, OptionalTensor column_bias,
    OptionalTensor row_ids, OptionalTensor column_ids, bool to_x, bool to_y) {
  PairProblem problem(x, y, scale, {row_bias, column_bias, row_ids, column_ids}, false);
  const PairShape& shape = problem.shape();
  const bool both = columns.numel() > 0;
  problem.pack(!problem.are_kept(scores), to_x, to_y);
  rows = problem.numbers(rows, "rows", shape.rows, true);
  grad_rows = problem.numbers(grad_rows, "grad_rows", shape.rows, false);
  if (both) {
    columns = problem.numbers(columns, "columns", shape.columns, true);
    grad_columns = problem.numbers(grad_columns, "grad_columns", shape.columns, false);
  }
  Tensor sums_x = to_x ? problem.gradient_sums(shape.rows) : problem.nothing();
  Tensor sums_y = to_y ? problem.gradient_sums(shape.columns) : problem.nothing();
  Tensor to_row_bias = problem.vector(row_bias ? shape.rows : 0, 0.0);
  Tensor to_column_bias = problem.vector(column_bias ? shape.columns : 0, 0.0);
  const LogSumExpBackwardArgs args{
      {problem.args(), data_of(sums_x, to_x), data_of(sums_y, to_y), problem.gradient_stride(),
       data_of(to_row_bias, row_bias.has_value()),
       data_of(to_column_bias, column_bias.has_value())},
      grad_rows.const_data_ptr(),
      rows.const_data_ptr(),
      both ? grad_columns.const_data_ptr() : nullptr,
      columns.const_data_ptr(),
      problem.kept(scores)};
  problem.run([&](void* scratch, BlockPair pair) {
    GENSSL_DISPATCH(logsumexp_pairs_backward)(args, scratch, pair);
  });
  double to_scale = 0;
  if (to_x) std::tie(sums_x, to_scale) = problem.finish(sums_x, true, true);
  if (to_y) sums_y = problem.finish(sums_y, false, true).first;
  return {as_type_of(sums_x, x), as_type_of(sums_y, y), problem.scalar(to_scale), to_row_bias,
          to_column_bias};
}

std::tuple<Tensor, Tensor> gram_logsumexp(Tensor z, Tensor scale, OptionalTensor bias,
                                          OptionalTensor ids, bool keep) {
  PairProblem problem = gram_problem(z, scale, bias, ids);
  const auto [sums, same, scores] = reduce(problem, true, keep);
  return {sums, scores};
}

std::tuple<Tensor, Tensor, Tensor> gram_logsumexp_backward(Tensor grad, Tensor log_sum,
                                                           Tensor scores, Tensor z, Tensor scale,
                                                           OptionalTensor bias,
                                                           OptionalTensor ids) {
  PairProblem problem = gram_problem(z, scale, bias, ids);
  const int64_t count = problem.shape().rows;
  problem.pack(!problem.are_kept(scores), true, true);
  log_sum = problem.numbers(log_sum, "log_sum", count, true);
  grad = problem.numbers(grad, "grad", count, false);
  Tensor sums = problem.gradient_sums(count), to_bias = problem.vector(bias ? count : 0, 0.0);
  void* weights = data_of(to_bias, bias.has_value());
  const LogSumExpBackwardArgs args{{problem.args(), sums.mutable_data_ptr(),
                                    sums.mutable_data_ptr(), sums.size(1), weights, weights},
                                   grad.const_data_ptr(),
                                   log_sum.const_data_ptr(),
                                   grad.const_data_ptr(),
                                   log_sum.const_data_ptr(),
                                   problem.kept(scores)};
  problem.run([&](void* scratch, BlockPair pair) {
    GENSSL_DISPATCH(logsumexp_pairs_backward)(args, scratch, pair);
  });
  const auto [to_z, products] = problem.finish(sums, true, true);
  return {as_type_of(to_z, z), problem.scalar(products / 2), to_bias};
}

}  // namespace
}  // namespace genssl

STABLE_TORCH_LIBRARY_IMPL(genssl_fast, CPU, m) {
  m.impl("_pair_logsumexp", TORCH_BOX(&genssl::pair_logsumexp));
  m.impl("_pair_logsumexp_backward", TORCH_BOX(&genssl::pair_logsumexp_backward));
  m.impl("_gram_logsumexp", TORCH_BOX(&genssl::gram_logsumexp));
  m.impl("_gram_logsumexp_backward", TORCH_BOX(&genssl::gram_logsumexp_backward));
}
