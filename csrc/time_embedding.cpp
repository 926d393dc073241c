#include "kernels/score/time_embedding.h"

#include <algorithm>
#include <vector>

#include "csrc/common.h"
#include "csrc/parallel.h"

namespace genssl {
namespace {

Tensor time_embedding(Tensor t, Tensor frequencies, bool sin_first, int64_t dim) {
  STD_TORCH_CHECK(dim >= 0, "dim: expected at least 0, got ", dim);
  STD_TORCH_CHECK(frequencies.dim() == 1 && frequencies.size(0) == dim / 2,
                  "frequencies: expected the shape [", dim / 2, "], got ", shape_of(frequencies));
  const bool is_double = t.scalar_type() == ScalarType::Double;
  t = as_contiguous(t);
  frequencies = contiguous_to(frequencies, is_double ? ScalarType::Double : ScalarType::Float);
  std::vector<int64_t> shape(t.sizes().begin(), t.sizes().end());
  shape.push_back(dim);
  Tensor target = new_empty(t, shape, t.scalar_type());
  const TimeEmbeddingArgs args{
      .type = element_type(t, "t"),
      .times = t.const_data_ptr(),
      .frequencies = frequencies.const_data_ptr(),
      .dim = dim,
      .sin_first = sin_first,
      .target = target.mutable_data_ptr(),
  };
  const int64_t grain = ceil_div(16384, std::max<int64_t>(dim, 1));
  parallel_for(0, t.numel(), grain, [&](int64_t begin, int64_t end) {
    GENSSL_DISPATCH(time_embedding)(args, begin, end);
  });
  return target;
}

}  // namespace
}  // namespace genssl

STABLE_TORCH_LIBRARY_IMPL(genssl_fast, CPU, m) {
  m.impl("_time_embedding", TORCH_BOX(&genssl::time_embedding));
}
