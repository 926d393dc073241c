#include "csrc/film_mlp_inputs.h"

#include <algorithm>
#include <string>

namespace genssl {
namespace {

void check_shape(const Tensor& tensor, const char* name, const std::vector<int64_t>& expected) {
  const auto sizes = tensor.sizes();
  if (std::equal(sizes.begin(), sizes.end(), expected.begin(), expected.end())) return;
  std::string text;
  for (int64_t size : expected) text += (text.empty() ? "" : ", ") + std::to_string(size);
  STD_TORCH_CHECK(false, name, ": expected the shape [", text, "], got ", shape_of(tensor));
}

}  // namespace

void FilmMLPInputs::prepare() {
  element_type(x, "x");
  STD_TORCH_CHECK(x.dim() == 2, "x: expected [B, D], got ", shape_of(x));
  STD_TORCH_CHECK(w_in.dim() == 2, "w_in: expected [H, D], got ", shape_of(w_in));
  STD_TORCH_CHECK(w.dim() == 3, "w: expected [L, H, H], got ", shape_of(w));
  STD_TORCH_CHECK(w_embed1.dim() == 2, "w_embed1: expected [E, T], got ", shape_of(w_embed1));
  const int64_t dim = x.size(1), hidden = w_in.size(0), blocks = w.size(0);
  const int64_t embed = w_embed1.size(0), time_dim = w_embed1.size(1);
  const auto take = [&](Tensor& tensor, const char* name, const std::vector<int64_t>& shape) {
    check_shape(tensor, name, shape);
    tensor = contiguous_to(tensor, compute_type());
  };
  take(x, "x", {x.size(0), dim});
  take(w_in, "w_in", {hidden, dim});
  take(b_in, "b_in", {hidden});
  take(w, "w", {blocks, hidden, hidden});
  take(c, "c", {blocks, hidden});
  take(w_film, "w_film", {blocks, 2 * hidden, embed});
  take(w_embed1, "w_embed1", {embed, time_dim});
  take(w_embed2, "w_embed2", {embed, embed});
  take(w_out, "w_out", {dim, hidden});
  take(b_out, "b_out", {dim});
  take(frequencies, "frequencies", {time_dim / 2});
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
}

}  // namespace genssl
