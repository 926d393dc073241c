// Runs the launchers of the FiLM-MLP on the CPU, for tests/kernels/film_mlp_cases.py.
#include "kernels/common/cuda.cuh"
#include "kernels/integrate/film_mlp_sample_cuda.h"
#include "kernels/score/film_mlp_cuda.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using namespace genssl;

template <typename Args>
int run(const Args& args, int (*measure)(const Args&, size_t*),
        int (*launch)(const Args&, void*, void*), char* message, size_t message_size) {
  try {
    size_t bytes = 0;
    if (int error = measure(args, &bytes)) return error;
    // Of exactly the size asked for, so that AddressSanitizer sees the end, and full of NaN.
    std::unique_ptr<char[]> workspace(new char[bytes]);
    memset(workspace.get(), cuda_on_cpu::kPoison, bytes);
    return launch(args, workspace.get(), nullptr);
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

EXPORT int run_film_mlp(const cuda::FilmMLPArgs* args, char* message, size_t message_size) {
  return run(*args, cuda::film_mlp_workspace, cuda::launch_film_mlp, message, message_size);
}

EXPORT int run_film_mlp_sample(const cuda::FilmMLPSampleArgs* args, char* message,
                               size_t message_size) {
  return run(*args, cuda::film_mlp_sample_workspace, cuda::launch_film_mlp_sample, message,
             message_size);
}
