// The tensors of one FiLM-MLP as _film_mlp and _film_mlp_sample take them: checked, contiguous, in the type in
// which they are computed.
#pragma once

#include <vector>

#include "csrc/common.h"
#include "kernels/score/film_mlp.h"

namespace genssl {

struct FilmMLPInputs {
  Tensor x, frequencies;
  bool sin_first;
  Tensor w_in, b_in, w, c, w_film, w_embed1, w_embed2, w_out, b_out;
  OptionalTensor class_embedding, labels;

  // fp64 for fp64, else fp32.
  ScalarType compute_type() const {
    return x.scalar_type() == ScalarType::Double ? ScalarType::Double : ScalarType::Float;
  }
  int64_t classes() const { return class_embedding ? class_embedding->size(0) : 0; }
  const int64_t* label_data() const {
    return static_cast<const int64_t*>(data_of(labels));
  }
  // Throws unless all shapes fit together.
  void prepare();

  template <class T>
  FilmMLPNetwork<T> network() const {
    const auto data = [](const Tensor& tensor) { return static_cast<const T*>(tensor.const_data_ptr()); };
    FilmMLPNetwork<T> network{};
    network.dim = x.size(1);
    network.hidden = w_in.size(0);
    network.blocks = w.size(0);
    network.embed = w_embed1.size(0);
    network.time_dim = w_embed1.size(1);
    network.w_in = data(w_in);
    network.b_in = data(b_in);
    network.w = data(w);
    network.c = data(c);
    network.w_film = data(w_film);
    network.w_embed1 = data(w_embed1);
    network.w_embed2 = data(w_embed2);
    network.w_out = data(w_out);
    network.b_out = data(b_out);
    network.class_embedding = static_cast<const T*>(data_of(class_embedding));
    network.frequencies = data(frequencies);
    network.sin_first = sin_first;
    return network;
  }
};

}  // namespace genssl
