#include "kernels/causal/made_inverse.h"

#include <tuple>

#include "csrc/common.h"
#include "csrc/made_inputs.h"
#include "csrc/memory.h"
#include "csrc/parallel.h"

namespace genssl {
namespace {

// Weights that are worth a thread, and multiplications.
constexpr int64_t kGrainPacked = 1 << 16;
constexpr int64_t kGrainMultiplications = 1 << 20;

template <class T>
void run(const MADEInputs& inputs, const Tensor& y, Tensor& x, Tensor& log_abs_det) {
  static thread_local AlignedBuffer<T> packed;
  MADEArrays<T> arrays(inputs);
  MADEInverseArgs<T> args{arrays.network(), static_cast<const T*>(y.const_data_ptr()),
                          static_cast<T*>(x.mutable_data_ptr()),
                          static_cast<T*>(log_abs_det.mutable_data_ptr())};
  MADENetwork<T>& network = args.network;
  network.packed = packed.reserve(arrays.packed_size());
  const int64_t items = network.matrices * network.blocks;
  const int64_t weights_per_item = std::max<int64_t>(arrays.packed_size() / items, 1);
  parallel_for(0, items, std::max<int64_t>(1, kGrainPacked / weights_per_item),
               [&](int64_t begin, int64_t end) {
                 GENSSL_DISPATCH(made_inverse_pack<T>)(network, begin, end);
               });
  const int64_t lanes = GENSSL_DISPATCH(made_inverse_lanes<T>)(), batch = y.size(0);
  const int64_t work = std::max<int64_t>(arrays.packed_size() * lanes, 1);
  parallel_for(0, ceil_div(batch, lanes), std::max<int64_t>(1, kGrainMultiplications / work),
               [&](int64_t begin, int64_t end) {
                 const int64_t size = GENSSL_DISPATCH(made_inverse_workspace<T>)(network);
                 GENSSL_DISPATCH(made_inverse<T>)(args, begin * lanes, std::min(end * lanes, batch),
                                                  thread_scratch<T>(size));
               });
}

std::tuple<Tensor, Tensor> made_inverse(Tensor y, Tensors weights, Tensors biases, Tensors degrees,
                                        int64_t activated, int64_t skips, int64_t activation,
                                        int64_t layout, int64_t clamp, bool shift_first,
                                        double limit, double offset, double min_scale, int64_t bins,
                                        int64_t tails, bool zuko, double left, double right,
                                        double bottom, double top, double min_width,
                                        double min_height, double min_derivative, double slope) {
  const MADETransform transform{
      static_cast<MADELayout>(layout),
      {static_cast<Clamp>(clamp), limit, offset, min_scale, shift_first},
      {static_cast<int>(bins), static_cast<Tails>(tails), static_cast<SplineParameterization>(zuko),
       left, right, bottom, top, min_width, min_height, min_derivative, slope}};
  const MADEInputs inputs(y, weights, biases, degrees, activated, skips, activation, transform);
  const Tensor contiguous = as_contiguous(y);
  Tensor x = new_empty_like(y);
  Tensor log_abs_det = new_empty(y, y.sizes().slice(0, 1), y.scalar_type());
  if (y.numel() == 0) return {x, log_abs_det};
  if (y.scalar_type() == ScalarType::Double) {
    run<double>(inputs, contiguous, x, log_abs_det);
  } else {
    run<float>(inputs, contiguous, x, log_abs_det);
  }
  return {x, log_abs_det};
}

}  // namespace
}  // namespace genssl

STABLE_TORCH_LIBRARY_IMPL(genssl_fast, CPU, m) {
  m.impl("_made_inverse", TORCH_BOX(&genssl::made_inverse));
}
