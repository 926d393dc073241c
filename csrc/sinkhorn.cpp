#include "kernels/contrast/sinkhorn.h"

#include <algorithm>
#include <tuple>

#include "csrc/common.h"
#include "csrc/memory.h"
#include "csrc/parallel.h"

namespace genssl {
namespace {

// Codes and logits that together exceed this do not fit into the last cache; then stores that
// bypass it pay.
constexpr int64_t kCacheBytes = int64_t{32} << 20;
// Elements and columns that are worth a thread: a busy machine makes threads wait for each other.
constexpr int64_t kGrain = 16384, kColumnGrain = 8192;
constexpr double kLog2OfE = 1.4426950408889634;

// The passes of one call, and the tensors that they share.
class Sinkhorn {
 public:
  Sinkhorn(const Tensor& given, double epsilon) : logits_(given) {
    STD_TORCH_CHECK(given.dim() == 2, "logits: expected the shape [B, K], got ", shape_of(given));
    logits_ = as_contiguous(given);
    args_.type = element_type(given, "logits");
    args_.rows = given.size(0);
    args_.columns = given.size(1);
    args_.scale = kLog2OfE / epsilon;
    args_.logits = logits_.const_data_ptr();
  }

  std::tuple<Tensor, Tensor> maxima() {
    Tensor maximum = vector(), sums = vector(), block_maxima = blocks(), block_sums = blocks();
    args_.maximum = maximum.mutable_data_ptr();
    args_.sums = sums.mutable_data_ptr();
    args_.block_maxima = block_maxima.mutable_data_ptr();
    args_.block_sums = block_sums.mutable_data_ptr();
    for_blocks([&](int64_t begin, int64_t end) {
      GENSSL_DISPATCH(sinkhorn_block_maxima)(args_, begin, end);
    });
    for_columns(GENSSL_DISPATCH(sinkhorn_maxima));
    return {maximum, sums};
  }

  Tensor sums(const Tensor& maximum, const Tensor& offset) {
    Tensor sums = vector(), block_sums = blocks();
    read(maximum, offset);
    args_.sums = sums.mutable_data_ptr();
    args_.block_sums = block_sums.mutable_data_ptr();
    for_blocks([&](int64_t begin, int64_t end) {
      GENSSL_DISPATCH(sinkhorn_block_sums)(args_, begin, end, scratch());
    });
    for_columns(GENSSL_DISPATCH(sinkhorn_sums));
    return sums;
  }

  // offset -= log2 (sums / mean_sum), in place.
  void lower(Tensor& offset, const Tensor& sums, double mean_sum) {
    args_.mean_sum = mean_sum;
    args_.offset = offset.mutable_data_ptr();
    args_.sums = const_cast<void*>(sums.const_data_ptr());
    for_columns(GENSSL_DISPATCH(sinkhorn_offsets));
  }

  Tensor codes(const Tensor& maximum, const Tensor& offset) {
    Tensor codes = new_empty_like(logits_);
    read(maximum, offset);
    args_.codes = codes.mutable_data_ptr();
    const int64_t size = static_cast<int64_t>(logits_.element_size());
    args_.streaming = size >= 4 && 2 * logits_.numel() * size > kCacheBytes;
    for_blocks([&](int64_t begin, int64_t end) {
      GENSSL_DISPATCH(sinkhorn_codes)(args_, begin, end, scratch());
    });
    return codes;
  }

  Tensor zeros() const {
    Tensor offset = vector();
    return torch::stable::fill_(offset, 0.0);
  }

 private:
  Tensor vector() const { return new_empty(logits_, {args_.columns}, compute_type(logits_)); }
  Tensor blocks() const {
    return new_empty(logits_, {sinkhorn_blocks(args_.rows), args_.columns}, compute_type(logits_));
  }
  void* scratch() const {
    const int64_t count = kSinkhornScratchRows * args_.columns;
    return compute_type(logits_) == ScalarType::Double
               ? static_cast<void*>(thread_scratch<double>(count))
               : static_cast<void*>(thread_scratch<float>(count));
  }
  void read(const Tensor& maximum, const Tensor& offset) {
    for (const Tensor* tensor : {&maximum, &offset}) {
      check_shape(*tensor, "maximum, offset", {args_.columns});
      check_type(*tensor, "maximum, offset", compute_type(logits_));
      STD_TORCH_CHECK(tensor->is_contiguous(), "maximum, offset: expected contiguous tensors");
    }
    args_.maximum = const_cast<void*>(maximum.const_data_ptr());
    args_.offset = const_cast<void*>(offset.const_data_ptr());
  }
  // A pass over the rows, in the other direction than the last one.
  template <class Body>
  void for_blocks(const Body& body) {
    const int64_t grain = kGrain / std::max(kSinkhornRows * args_.columns, int64_t{1});
    parallel_for(0, sinkhorn_blocks(args_.rows), std::max(grain, int64_t{1}), body);
    args_.backwards = !args_.backwards;
  }
  template <class Kernel>
  void for_columns(const Kernel& kernel) {
    parallel_for(0, args_.columns, kColumnGrain,
                 [&](int64_t begin, int64_t end) { kernel(args_, begin, end); });
  }

  Tensor logits_;
  SinkhornArgs args_{};
};

std::tuple<Tensor, Tensor> sinkhorn_maxima(Tensor logits, double epsilon) {
  return Sinkhorn(logits, epsilon).maxima();
}

Tensor sinkhorn_sums(Tensor logits, Tensor maximum, Tensor offset, double epsilon) {
  return Sinkhorn(logits, epsilon).sums(maximum, offset);
}

Tensor sinkhorn_codes(Tensor logits, Tensor maximum, Tensor offset, double epsilon) {
  return Sinkhorn(logits, epsilon).codes(maximum, offset);
}

Tensor sinkhorn(Tensor logits, double epsilon, int64_t iterations) {
  Sinkhorn passes(logits, epsilon);
  auto [maximum, sums] = passes.maxima();
  Tensor offset = passes.zeros();
  passes.lower(offset, sums, 1);
  const double mean_sum = static_cast<double>(logits.size(0)) / logits.size(1);
  for (int64_t i = 1; i < iterations; ++i) {
    passes.lower(offset, passes.sums(maximum, offset), mean_sum);
  }
  return passes.codes(maximum, offset);
}

}  // namespace
}  // namespace genssl

STABLE_TORCH_LIBRARY_IMPL(genssl_fast, CPU, m) {
  m.impl("_sinkhorn", TORCH_BOX(&genssl::sinkhorn));
  m.impl("_sinkhorn_maxima", TORCH_BOX(&genssl::sinkhorn_maxima));
  m.impl("_sinkhorn_sums", TORCH_BOX(&genssl::sinkhorn_sums));
  m.impl("_sinkhorn_codes", TORCH_BOX(&genssl::sinkhorn_codes));
}
