// Launchers of the FiLM-MLP on CUDA; their only callers are csrc/cuda and the tests.
#pragma once

#include <stddef.h>
#include <stdint.h>

#include "kernels/common/array.h"

namespace genssl::cuda {

// Tensors of one network; contiguous, all on one device.
struct FilmMLPTensors {
  int32_t device;
  int32_t dim, hidden, blocks, embed, time_dim, num_classes;
  ElementType type;                 // of x, the weights and the output
  const void* x;                    // [B, D]
  const void *w_in, *b_in;          // [H, D], [H]
  const void *w, *c;                // [L, H, H], [L, H]
  const void* w_film;               // [L, 2H, E], scale first
  const void *w_embed1, *w_embed2;  // [E, T], [E, E]
  const void *w_out, *b_out;        // [D, H], [D]
  const void* class_embedding;      // [K, E] or null
  const int64_t* labels;            // [B] or null
  Array frequencies;                // [T / 2]
  int32_t sin_first;
};

struct FilmMLPArgs {
  FilmMLPTensors tensors;
  int64_t batch;
  Array times;  // [B], or one time for the batch
  int32_t per_sample_time;
  void* output;  // [B, D]
};

// Bytes of scratch memory on the device; an error of the CUDA runtime is returned as its number.
int film_mlp_workspace(const FilmMLPArgs& args, size_t* bytes);

// Enqueues all kernels on `stream` (a cudaStream_t); allocates nothing and waits for nothing.
int launch_film_mlp(const FilmMLPArgs& args, void* workspace, void* stream);

const char* error_text(int error);

}  // namespace genssl::cuda
