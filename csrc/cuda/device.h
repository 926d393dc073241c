// What the CUDA glue shares: the current stream, tensors as pointers, scratch memory.
#pragma once

#include <torch/csrc/stable/accelerator.h>
#include <torch/csrc/stable/ops.h>
#include <torch/csrc/stable/tensor.h>

#include <cstddef>
#include <optional>

#include "kernels/common/array.h"

namespace genssl::cuda {

using torch::stable::Tensor;

// PyTorch's current stream, a cudaStream_t. Its accessor lives in libtorch_cuda, which a CPU-only
// PyTorch lacks: it is looked up in the loaded library at the first call, never linked.
void* current_stream(int32_t device_index);

ElementType element_type(const Tensor& tensor, const char* name);
Tensor scratch(const Tensor& like, size_t bytes);

// Throws with the text of the CUDA runtime where `error` is not success.
void check_launch(int error, const char* operation);

// A contiguous tensor on the device of `x`, kept alive until the launch.
Tensor on_device_of(const Tensor& x, const Tensor& tensor, const char* name);

inline const void* pointer(const Tensor& tensor) { return tensor.const_data_ptr(); }
inline const void* pointer(const std::optional<Tensor>& tensor) {
  return tensor ? tensor->const_data_ptr() : nullptr;
}

}  // namespace genssl::cuda
