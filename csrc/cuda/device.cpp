#include "csrc/cuda/device.h"

#include <dlfcn.h>

#include <array>

#include "kernels/score/film_mlp_cuda.h"

namespace genssl::cuda {
namespace {

using StreamAccessor = AOTITorchError (*)(int32_t device_index, void** stream);

StreamAccessor find_stream_accessor() {
  void* library = dlopen("libtorch_cuda.so", RTLD_NOLOAD | RTLD_LAZY);
  void* symbol = library ? dlsym(library, "aoti_torch_get_current_cuda_stream") : nullptr;
  return reinterpret_cast<StreamAccessor>(symbol);
}

}  // namespace

void* current_stream(int32_t device_index) {
  static const StreamAccessor accessor = find_stream_accessor();
  STD_TORCH_CHECK(accessor != nullptr,
                  "the loaded PyTorch has no CUDA: aoti_torch_get_current_cuda_stream not found");
  void* stream = nullptr;
  STABLE_TORCH_ERROR_CODE_CHECK(accessor(device_index, &stream));
  return stream;
}

ElementType element_type(const Tensor& tensor, const char* name) {
  using torch::headeronly::ScalarType;
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
      STD_TORCH_CHECK(false, name, ": expected dtype float32, float64, bfloat16, float16");
  }
}

Tensor scratch(const Tensor& like, size_t bytes) {
  const std::array<int64_t, 1> size{static_cast<int64_t>(bytes)};
  return torch::stable::new_empty(like, size, torch::headeronly::ScalarType::Byte);
}

void check_launch(int error, const char* operation) {
  STD_TORCH_CHECK(error == 0, operation, ": ", error_text(error));
}

Tensor on_device_of(const Tensor& x, const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == x.get_device_index(), name,
                  ": expected a tensor on the device of x, cuda:", x.get_device_index());
  return torch::stable::contiguous(tensor);
}

}  // namespace genssl::cuda
