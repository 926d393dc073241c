#include "kernels/contrast/ema_update.h"

#include <vector>

#include "csrc/common.h"
#include "csrc/parallel.h"

namespace genssl {
namespace {

// Elements that are worth a thread.
constexpr int64_t kGrain = 32768;

void ema_update(std::vector<Tensor> averages, std::vector<Tensor> parameters, double weight) {
  STD_TORCH_CHECK(averages.size() == parameters.size(), "parameters: expected ", averages.size(),
                  ", got ", parameters.size());
  for (size_t i = 0; i < averages.size(); ++i) {
    const Tensor& average = averages[i];
    const ElementType type = element_type(parameters[i], "parameters");
    check_type(average, "averages", ScalarType::Float);
    check_shape(parameters[i], "parameters", average.sizes());
    STD_TORCH_CHECK(type == ElementType::bfloat16 || type == ElementType::float16,
                    "parameters: expected bfloat16 or float16");
    STD_TORCH_CHECK(average.is_contiguous(), "averages: expected contiguous tensors");
    const Tensor parameter = as_contiguous(parameters[i]);
    const EmaUpdateArgs args{type, static_cast<float*>(average.mutable_data_ptr()),
                             parameter.const_data_ptr(), static_cast<float>(weight)};
    parallel_for(0, average.numel(), kGrain, [&](int64_t begin, int64_t end) {
      GENSSL_DISPATCH(ema_update)(args, begin, end);
    });
  }
}

}  // namespace
}  // namespace genssl

STABLE_TORCH_LIBRARY_IMPL(genssl_fast, CPU, m) {
  m.impl("_ema_update", TORCH_BOX(&genssl::ema_update));
}
