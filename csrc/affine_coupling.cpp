#include "kernels/coupling/affine_coupling.h"

#include <algorithm>
#include <tuple>
#include <vector>

#include "csrc/common.h"
#include "csrc/parallel.h"

namespace genssl {
namespace {

// Tensors that together exceed this do not fit into the last cache; then stores that bypass it
// pay.
constexpr int64_t kCacheBytes = int64_t{32} << 20;
// Elements that are worth a thread.
constexpr int64_t kGrain = 16384;

// A dimension of a sample's parameters, or several that both parameters step through evenly.
struct Dimension {
  int64_t size, shift_stride, log_scale_stride;
};

std::vector<Dimension> merged_dimensions(const Tensor& shift, const Tensor& log_scale) {
  std::vector<Dimension> merged;
  for (int64_t i = 1; i < shift.dim(); ++i) {
    const Dimension next{shift.size(i), shift.stride(i), log_scale.stride(i)};
    if (next.size == 1) continue;
    Dimension* last = merged.empty() ? nullptr : &merged.back();
    if (last && last->shift_stride == next.size * next.shift_stride &&
        last->log_scale_stride == next.size * next.log_scale_stride) {
      *last = {last->size * next.size, next.shift_stride, next.log_scale_stride};
    } else {
      merged.push_back(next);
    }
  }
  while (merged.size() < 2) merged.insert(merged.begin(), Dimension{1, 0, 0});
  return merged;
}

// Views of the parameters where two dimensions describe them; otherwise of copies, which replace
// them.
void read_parameters(Tensor& shift, OptionalTensor& log_scale, AffineCouplingArgs& args) {
  std::vector<Dimension> merged = merged_dimensions(shift, log_scale ? *log_scale : shift);
  if (merged.size() > 2) {
    shift = as_contiguous(shift);
    if (log_scale) log_scale = as_contiguous(*log_scale);
    merged = merged_dimensions(shift, log_scale ? *log_scale : shift);
  }
  args.inner = merged[1].size;
  args.shift = {shift.const_data_ptr(), shift.stride(0), merged[0].shift_stride,
                merged[1].shift_stride};
  if (!log_scale) return;
  args.log_scale = {log_scale->const_data_ptr(), log_scale->stride(0), merged[0].log_scale_stride,
                    merged[1].log_scale_stride};
}

// Tensors of one call, kept alive beside the pointers to them.
struct Inputs {
  Tensor x, shift;
  OptionalTensor log_scale, mask;
  AffineCouplingArgs args;
};

Inputs read_inputs(Tensor x, Tensor shift, OptionalTensor log_scale, OptionalTensor mask,
                   int64_t split, bool inverse, int64_t clamp, double limit, double offset,
                   double min_scale, bool shift_first) {
  STD_TORCH_CHECK(x.dim() >= 2, "x: expected the shape [B, ...], got ", shape_of(x));
  Inputs inputs{as_contiguous(x), shift, log_scale, mask, {}};
  const int64_t elements = elements_per_sample(x),
                inner = elements / std::max(x.size(1), int64_t{1});
  std::vector<int64_t> part(x.sizes().begin(), x.sizes().end());
  part[1] -= std::abs(split);
  check_shape(shift, "shift", part);
  check_type(shift, "shift", x.scalar_type());
  if (log_scale) {
    check_shape(*log_scale, "log_scale", part);
    check_type(*log_scale, "log_scale", x.scalar_type());
  }
  AffineCouplingArgs& args = inputs.args;
  args.type = element_type(x, "x");
  args.elements = elements;
  args.begin = std::max(split, int64_t{0}) * inner;
  args.end = elements + std::min(split, int64_t{0}) * inner;
  args.x = inputs.x.const_data_ptr();
  args.inverse = inverse;
  args.options = {log_scale ? static_cast<Clamp>(clamp) : Clamp::additive, limit, offset, min_scale,
                  shift_first};
  read_parameters(inputs.shift, inputs.log_scale, args);
  if (mask) {
    check_type(*mask, "mask", ScalarType::Bool);
    STD_TORCH_CHECK(mask->numel() == args.end - args.begin, "mask: expected ",
                    args.end - args.begin, " entries, got the shape ", shape_of(*mask));
    inputs.mask = as_contiguous(*mask);
    args.mask = static_cast<const uint8_t*>(inputs.mask->const_data_ptr());
  }
  return inputs;
}

bool streams(const Tensor& x, const AffineCouplingArgs& args) {
  const int64_t size = static_cast<int64_t>(x.element_size());
  const int64_t offsets =
      reinterpret_cast<intptr_t>(args.y) | args.elements * size | args.begin * size;
  return size >= 4 && offsets % 64 == 0 && 4 * x.numel() * size > kCacheBytes;
}

template <class Body>
void for_samples(const Tensor& x, const Body& body) {
  const int64_t grain = kGrain / std::max(elements_per_sample(x), int64_t{1});
  parallel_for(0, x.size(0), std::max(grain, int64_t{1}), body);
}

std::tuple<Tensor, Tensor> affine_coupling(Tensor x, Tensor shift, OptionalTensor log_scale,
                                           OptionalTensor mask, int64_t split, bool inverse,
                                           int64_t clamp, double limit, double offset,
                                           double min_scale, bool shift_first) {
  Inputs inputs = read_inputs(x, shift, log_scale, mask, split, inverse, clamp, limit, offset,
                              min_scale, shift_first);
  Tensor y = new_empty_like(x), log_abs_det = new_empty(x, {x.size(0)}, compute_type(x));
  AffineCouplingArgs& args = inputs.args;
  args.y = y.mutable_data_ptr();
  args.log_abs_det = log_abs_det.mutable_data_ptr();
  args.streaming = streams(x, args);
  for_samples(
      x, [&](int64_t begin, int64_t end) { GENSSL_DISPATCH(affine_coupling)(args, begin, end); });
  return {y, log_abs_det};
}

std::tuple<Tensor, Tensor, Tensor> affine_coupling_backward(
    Tensor grad_y, Tensor grad_log_abs_det, Tensor x, Tensor shift, OptionalTensor log_scale,
    OptionalTensor mask, int64_t split, bool inverse, int64_t clamp, double limit, double offset,
    double min_scale, bool shift_first) {
  Inputs inputs = read_inputs(x, shift, log_scale, mask, split, inverse, clamp, limit, offset,
                              min_scale, shift_first);
  grad_y = contiguous_like(grad_y, x, "grad_y");
  check_shape(grad_log_abs_det, "grad_log_abs_det", {x.size(0)});
  grad_log_abs_det = contiguous_to(grad_log_abs_det, compute_type(x));
  Tensor grad_x = new_empty_like(x), grad_shift = new_empty_like(shift);
  Tensor grad_log_scale =
      log_scale ? new_empty_like(*log_scale) : new_empty(x, {0}, x.scalar_type());
  const AffineCouplingBackwardArgs args{
      .forward = inputs.args,
      .grad_y = grad_y.const_data_ptr(),
      .grad_log_abs_det = grad_log_abs_det.const_data_ptr(),
      .grad_x = grad_x.mutable_data_ptr(),
      .grad_shift = grad_shift.mutable_data_ptr(),
      .grad_log_scale = (log_scale ? grad_log_scale : grad_shift).mutable_data_ptr(),
  };
  for_samples(x, [&](int64_t begin, int64_t end) {
    GENSSL_DISPATCH(affine_coupling_backward)(args, begin, end);
  });
  return {grad_x, grad_shift, grad_log_scale};
}

}  // namespace
}  // namespace genssl

STABLE_TORCH_LIBRARY_IMPL(genssl_fast, CPU, m) {
  m.impl("_affine_coupling", TORCH_BOX(&genssl::affine_coupling));
  m.impl("_affine_coupling_backward", TORCH_BOX(&genssl::affine_coupling_backward));
}
