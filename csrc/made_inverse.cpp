#include "kernels/causal/made_inverse.h"

#include "csrc/common.h"
#include "csrc/made_inputs.h"
#include "csrc/memory.h"
#include "csrc/parallel.h"

namespace genssl {
namespace {

// Weights that are worth a thread, and multiplications.
constexpr int64_t kGrainPacked = 1 << 16;
constexpr int64_t kGrainMultiplications = 1 << 20;

struct CPU {
  struct Guard {
    explicit Guard(const Tensor&) {}
  };

  template <class T>
  static void run(const MADEInputs& inputs, const Tensor& y, Tensor& x, Tensor& log_abs_det) {
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
                   GENSSL_DISPATCH(made_inverse<T>)(
                       args, begin * lanes, std::min(end * lanes, batch), thread_scratch<T>(size));
                 });
  }
};

}  // namespace
}  // namespace genssl

STABLE_TORCH_LIBRARY_IMPL(genssl_fast, CPU, m) {
  m.impl("_made_inverse", TORCH_BOX(&genssl::made_inverse<genssl::CPU>));
}
