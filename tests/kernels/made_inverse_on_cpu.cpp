// Runs the launchers of made_inverse on the CPU, for tests/kernels/test_cuda_made_inverse.py.
#include "kernels/causal/made_inverse_cuda.h"
#include "kernels/common/cuda.cuh"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using namespace genssl;

template <typename Real>
int run(const cuda::MADEInverseArgs<Real>& args, char* message, size_t message_size) {
  try {
    size_t bytes = 0;
    if (int error = cuda::made_inverse_workspace(args, &bytes)) return error;
    // Of exactly the size asked for, so that AddressSanitizer sees the end, and full of NaN.
    std::unique_ptr<char[]> workspace(new char[bytes]);
    memset(workspace.get(), cuda_on_cpu::kPoison, bytes);
    return cuda::launch_made_inverse(args, workspace.get(), nullptr);
  } catch (const std::exception& error) {
    strncpy(message, error.what(), message_size - 1);
    return -1;
  }
}

}  // namespace

EXPORT void configure(uint64_t seed, int num_multiprocessors, size_t max_shared_bytes) {
  cuda_on_cpu::settings.seed = seed;
  cuda_on_cpu::settings.num_multiprocessors = num_multiprocessors;
  cuda_on_cpu::settings.max_shared_bytes = max_shared_bytes;
}

EXPORT int run_made_inverse_float32(const cuda::MADEInverseArgs<float>* args, char* message,
                                    size_t message_size) {
  return run(*args, message, message_size);
}

EXPORT int run_made_inverse_float64(const cuda::MADEInverseArgs<double>* args, char* message,
                                    size_t message_size) {
  return run(*args, message, message_size);
}
