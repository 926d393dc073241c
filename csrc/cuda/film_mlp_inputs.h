// The tensors that _film_mlp and _film_mlp_sample share: checked, made contiguous, held until the launch.
#pragma once

#include "csrc/cuda/device.h"
#include "kernels/score/film_mlp_cuda.h"

namespace genssl::cuda {

struct FilmMLPInputs {
  Tensor x, frequencies, w_in, b_in, w, c, w_film, w_embed1, w_embed2, w_out, b_out;
  std::optional<Tensor> class_embedding, labels;

  // Throws unless the shapes fit together, and all but the labels and the frequencies have x's dtype.
  void prepare();
  FilmMLPTensors tensors(bool sin_first) const;
};

}  // namespace genssl::cuda
