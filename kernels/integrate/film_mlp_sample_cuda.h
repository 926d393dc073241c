// Launcher of the FiLM-MLP sampling loop on CUDA; its only callers are csrc/cuda and the tests.
#pragma once

#include "kernels/score/film_mlp_cuda.h"

namespace genssl::cuda {

// A row of the table is kept in shared memory.
constexpr int kMaxCoefficients = 64;

struct FilmMLPSampleArgs {
  FilmMLPTensors tensors;
  int64_t batch;
  const double* coefficients;  // [N, num_states + num_predictions + 6] on the device
  int32_t num_rows, num_states, num_predictions;
  double clip;  // NaN: each row's own
  int64_t seed, step, first_sample;
  const int64_t *seed_tensor, *step_tensor;  // on the device; win over the numbers where not null
  const void* noise;                         // [N, B, D], or null: drawn
  void* output;                              // [B, D]
};

int film_mlp_sample_workspace(const FilmMLPSampleArgs& args, size_t* bytes);
int launch_film_mlp_sample(const FilmMLPSampleArgs& args, void* workspace, void* stream);

}  // namespace genssl::cuda
