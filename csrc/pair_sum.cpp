#include <tuple>

#include "csrc/pair_problem.h"
#include "kernels/contrast/pairs.h"

namespace genssl {
namespace {

Psi checked_psi(int64_t psi) {
  STD_TORCH_CHECK(psi >= 0 && psi <= static_cast<int64_t>(Psi::quadratic),
                  "psi: expected 0 to 3, got ", psi);
  return static_cast<Psi>(psi);
}

Tensor gram_pair_sum(Tensor z, Tensor scale, OptionalTensor bias, Tensor shift, int64_t psi) {
  PairProblem problem = gram_problem(z, scale, bias, std::nullopt);
  const int64_t count = problem.shape().rows;
  problem.pack(true, false, false);
  shift = problem.numbers(shift, "shift", count, false);
  Tensor sums = problem.vector(count, 0.0);
  const PairSumArgs args{problem.args(), checked_psi(psi), shift.const_data_ptr(),
                         sums.mutable_data_ptr()};
  problem.run(
      [&](void* scratch, BlockPair pair) { GENSSL_DISPATCH(pair_sum)(args, scratch, pair); });
  return sums;
}

std::tuple<Tensor, Tensor, Tensor, Tensor> gram_pair_sum_backward(Tensor grad, Tensor z,
                                                                  Tensor scale, OptionalTensor bias,
                                                                  Tensor shift, int64_t psi) {
  PairProblem problem = gram_problem(z, scale, bias, std::nullopt);
  const int64_t count = problem.shape().rows;
  problem.pack(true, true, true);
  shift = problem.numbers(shift, "shift", count, false);
  grad = problem.numbers(grad, "grad", count, false);
  Tensor sums = problem.gradient_sums(count), to_shift = problem.vector(count, 0.0);
  Tensor to_bias = problem.vector(bias ? count : 0, 0.0);
  void* weights = data_of(to_bias, bias.has_value());
  const PairSumBackwardArgs args{{problem.args(), sums.mutable_data_ptr(), sums.mutable_data_ptr(),
                                  sums.size(1), weights, weights},
                                 checked_psi(psi),
                                 shift.const_data_ptr(),
                                 grad.const_data_ptr(),
                                 to_shift.mutable_data_ptr()};
  problem.run([&](void* scratch, BlockPair pair) {
    GENSSL_DISPATCH(pair_sum_backward)(args, scratch, pair);
  });
  const auto [to_z, products] = problem.finish(sums, true, true);
  return {as_type_of(to_z, z), problem.scalar(products / 2), to_bias, to_shift};
}

}  // namespace
}  // namespace genssl

STABLE_TORCH_LIBRARY_IMPL(genssl_fast, CPU, m) {
  m.impl("_gram_pair_sum", TORCH_BOX(&genssl::gram_pair_sum));
  m.impl("_gram_pair_sum_backward", TORCH_BOX(&genssl::gram_pair_sum_backward));
}
