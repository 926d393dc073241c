// Helpers of the glue between PyTorch's dispatcher and the kernels: checks that name the argument,
// and arguments that arrive as a number or as a tensor.
#pragma once

#include <torch/csrc/stable/library.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>
#include <torch/headeronly/core/ScalarType.h>
#include <torch/headeronly/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/common/element_type.h"

namespace genssl {

using torch::headeronly::ScalarType;
using torch::stable::Tensor;
using OptionalTensor = std::optional<Tensor>;

template <class Sizes>
std::string shape_text(const Sizes& sizes) {
  std::string text = "[";
  for (int64_t size : sizes) text += (text.size() > 1 ? ", " : "") + std::to_string(size);
  return text + "]";
}
inline std::string shape_of(const Tensor& tensor) { return shape_text(tensor.sizes()); }

inline ElementType element_type(const Tensor& tensor, const char* name) {
  switch (tensor.scalar_type()) {
    case ScalarType::Float:
      return ElementType::float32;
    case ScalarType::Double:
      return ElementType::float64;
    case ScalarType::BFloat16:
      return ElementType::bfloat16;
    case ScalarType::Half:
      return ElementType::float16;
    default:
      STD_TORCH_CHECK(false, name, ": expected float32, float64, bfloat16 or float16, got ",
                      torch::headeronly::toString(tensor.scalar_type()));
  }
}

// fp64 for fp64, else fp32.
inline ScalarType compute_type(const Tensor& tensor) {
  return tensor.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
}

inline void check_type(const Tensor& tensor, const char* name, ScalarType expected) {
  STD_TORCH_CHECK(tensor.scalar_type() == expected, name, ": expected ",
                  torch::headeronly::toString(expected), ", got ",
                  torch::headeronly::toString(tensor.scalar_type()));
}

template <class Sizes>
void check_shape(const Tensor& tensor, const char* name, const Sizes& expected) {
  const auto sizes = tensor.sizes();
  if (std::equal(sizes.begin(), sizes.end(), expected.begin(), expected.end())) return;
  STD_TORCH_CHECK(false, name, ": expected the shape ", shape_text(expected), ", got ",
                  shape_of(tensor));
}
inline void check_shape(const Tensor& tensor, const char* name,
                        std::initializer_list<int64_t> expected) {
  check_shape<std::initializer_list<int64_t>>(tensor, name, expected);
}

// Uninitialised memory on the device of `like`. The C function is called by itself: the stable
// ABI's own new_empty looks its operation up by name, which costs half a microsecond more.
inline Tensor new_empty(const Tensor& like, torch::headeronly::IntHeaderOnlyArrayRef shape,
                        ScalarType type) {
  int32_t dtype = torch::stable::detail::to<int32_t>(torch::stable::detail::from(type));
  int32_t layout, device_type, device_index;
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_layout(like.get(), &layout));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_type(like.get(), &device_type));
  STABLE_TORCH_ERROR_CODE_CHECK(aoti_torch_get_device_index(like.get(), &device_index));
  AtenTensorHandle result;
  STABLE_TORCH_ERROR_CODE_CHECK(
      aoti_torch_aten_new_empty(like.get(), shape.data(), static_cast<int64_t>(shape.size()),
                                &dtype, &layout, &device_type, device_index, nullptr, &result));
  return Tensor(result);
}
inline Tensor new_empty_like(const Tensor& tensor) {
  return new_empty(tensor, tensor.sizes(), tensor.scalar_type());
}

inline Tensor as_contiguous(const Tensor& tensor) {
  return tensor.is_contiguous() ? tensor : torch::stable::contiguous(tensor);
}

// Checks the shape and the type of `tensor` against those of `model`, and returns it contiguous.
inline Tensor contiguous_like(const Tensor& tensor, const Tensor& model, const char* name) {
  check_shape(tensor, name, model.sizes());
  check_type(tensor, name, model.scalar_type());
  return as_contiguous(tensor);
}

inline Tensor contiguous_to(const Tensor& tensor, ScalarType type) {
  return as_contiguous(tensor.scalar_type() == type ? tensor : torch::stable::to(tensor, type));
}

inline const void* data_of(const OptionalTensor& tensor) {
  return tensor ? tensor->const_data_ptr() : nullptr;
}

// The first dimension holds the samples; a tensor without dimensions is one sample.
inline int64_t num_samples(const Tensor& tensor) { return tensor.dim() ? tensor.size(0) : 1; }
inline int64_t elements_per_sample(const Tensor& tensor) {
  int64_t elements = 1;
  for (int64_t i = 1; i < tensor.dim(); ++i) elements *= tensor.size(i);
  return elements;
}

// A seed or a step: the tensor, where there is one, wins over the number.
inline int64_t value_of(int64_t number, const OptionalTensor& tensor, const char* name) {
  if (!tensor) return number;
  check_type(*tensor, name, ScalarType::Long);
  STD_TORCH_CHECK(tensor->numel() == 1, name, ": expected one element, got the shape ",
                  shape_of(*tensor));
  return *static_cast<const int64_t*>(tensor->const_data_ptr());
}

// How many blocks of `block` cover `count`.
inline int64_t ceil_div(int64_t count, int64_t block) { return (count + block - 1) / block; }

}  // namespace genssl
