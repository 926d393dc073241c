// The tensors of one FiLM-MLP as _film_mlp and _film_mlp_sample take them: checked and contiguous.
#pragma once

#include "csrc/common.h"
#include "kernels/score/film_mlp.h"

namespace genssl {

struct FilmMLPInputs {
  Tensor x, frequencies;
  bool sin_first;
  Tensor w_in, b_in, w, c, w_film, w_embed1, w_embed2, w_out, b_out;
  OptionalTensor class_embedding, labels;

  int64_t classes() const { return class_embedding ? class_embedding->size(0) : 0; }
  const int64_t* label_data() const { return static_cast<const int64_t*>(data_of(labels)); }

  // Throws unless all shapes fit together. Tensors become contiguous and of `type`, frequencies of
  // the compute type.
  void prepare(ScalarType type) {
    element_type(x, "x");
    STD_TORCH_CHECK(x.dim() == 2, "x: expected [B, D], got ", shape_of(x));
    STD_TORCH_CHECK(w_in.dim() == 2, "w_in: expected [H, D], got ", shape_of(w_in));
    STD_TORCH_CHECK(w.dim() == 3, "w: expected [L, H, H], got ", shape_of(w));
    STD_TORCH_CHECK(w_embed1.dim() == 2, "w_embed1: expected [E, T], got ", shape_of(w_embed1));
    const int64_t dim = x.size(1), hidden = w_in.size(0), blocks = w.size(0);
    const int64_t embed = w_embed1.size(0), time_dim = w_embed1.size(1);
    const auto take = [&](Tensor& tensor, const char* name, const std::vector<int64_t>& shape) {
      check_shape(tensor, name, shape);
      tensor = contiguous_to(tensor, type);
    };
    take(w_in, "w_in", {hidden, dim});
    take(b_in, "b_in", {hidden});
    take(w, "w", {blocks, hidden, hidden});
    take(c, "c", {blocks, hidden});
    take(w_film, "w_film", {blocks, 2 * hidden, embed});
    take(w_embed1, "w_embed1", {embed, time_dim});
    take(w_embed2, "w_embed2", {embed, embed});
    take(w_out, "w_out", {dim, hidden});
    take(b_out, "b_out", {dim});
    check_shape(frequencies, "frequencies", {time_dim / 2});
    frequencies = contiguous_to(frequencies, compute_type(x));
    STD_TORCH_CHECK(!labels || class_embedding,
                    "labels: expected None for weights without class_embedding");
    if (class_embedding) {
      STD_TORCH_CHECK(class_embedding->dim() == 2, "class_embedding: expected [K, E], got ",
                      shape_of(*class_embedding));
      take(*class_embedding, "class_embedding", {class_embedding->size(0), embed});
    }
    if (labels) {
      check_type(*labels, "labels", ScalarType::Long);
      check_shape(*labels, "labels", {x.size(0)});
      labels = as_contiguous(*labels);
    }
    x = contiguous_to(x, type);
  }

  template <class T>
  FilmMLPNetwork<T> network() const {
    const auto data = [](const Tensor& tensor) {
      return static_cast<const T*>(tensor.const_data_ptr());
    };
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
