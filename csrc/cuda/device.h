// What the CUDA glue shares: the current stream, scratch memory, errors of launches.
#pragma once

#include <torch/csrc/stable/accelerator.h>

#include <cstddef>

#include "csrc/common.h"

namespace genssl::cuda {

// PyTorch's current stream, a cudaStream_t. Its accessor lives in libtorch_cuda, which a CPU-only
// PyTorch lacks: it is looked up in the loaded library at the first call, never linked.
void* current_stream(int32_t device_index);

// Throws with the text of the CUDA runtime where `error` is not success.
void check_launch(int error, const char* operation);

// Checks that `tensor` is on the device of `x` and returns it contiguous.
Tensor on_device_of(const Tensor& x, const Tensor& tensor, const char* name);

inline Tensor scratch(const Tensor& like, size_t bytes) {
  const int64_t size = static_cast<int64_t>(bytes);
  return new_empty(like, {&size, 1}, ScalarType::Byte);
}

}  // namespace genssl::cuda
