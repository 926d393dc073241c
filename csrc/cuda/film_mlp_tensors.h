// The tensors of one FiLM-MLP as the CUDA launchers take them.
#pragma once

#include "csrc/cuda/device.h"
#include "csrc/film_mlp_inputs.h"
#include "kernels/score/film_mlp_cuda.h"

namespace genssl::cuda {

// Throws unless all of the prepared inputs are on the device of x.
FilmMLPTensors film_mlp_tensors(const FilmMLPInputs& inputs);

}  // namespace genssl::cuda
