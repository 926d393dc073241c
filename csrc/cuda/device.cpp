#include "csrc/cuda/device.h"

#include <dlfcn.h>

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

void check_launch(int error, const char* operation) {
  STD_TORCH_CHECK(error == 0, operation, ": ", error_text(error));
}

Tensor on_device_of(const Tensor& x, const Tensor& tensor, const char* name) {
  STD_TORCH_CHECK(tensor.is_cuda() && tensor.get_device_index() == x.get_device_index(), name,
                  ": expected a tensor on the device of x, cuda:", x.get_device_index());
  return as_contiguous(tensor);
}

}  // namespace genssl::cuda
