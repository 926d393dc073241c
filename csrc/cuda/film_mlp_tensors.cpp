#include "csrc/cuda/film_mlp_tensors.h"

#include <limits>

namespace genssl::cuda {
namespace {

int32_t size(const Tensor& tensor, int64_t dimension) {
  const int64_t size = tensor.size(dimension);
  STD_TORCH_CHECK(size <= std::numeric_limits<int32_t>::max(),
                  "weights: expected dimensions below 2^31, got ", size);
  return static_cast<int32_t>(size);
}

}  // namespace

FilmMLPTensors film_mlp_tensors(const FilmMLPInputs& inputs) {
  const auto data = [&](const Tensor& tensor, const char* name) {
    return on_device_of(inputs.x, tensor, name).const_data_ptr();
  };
  FilmMLPTensors tensors{};
  tensors.device = inputs.x.get_device_index();
  tensors.dim = size(inputs.x, 1);
  tensors.hidden = size(inputs.w_in, 0);
  tensors.blocks = size(inputs.w, 0);
  tensors.embed = size(inputs.w_embed1, 0);
  tensors.time_dim = size(inputs.w_embed1, 1);
  tensors.type = element_type(inputs.x, "x");
  tensors.x = data(inputs.x, "x");
  tensors.w_in = data(inputs.w_in, "w_in");
  tensors.b_in = data(inputs.b_in, "b_in");
  tensors.w = data(inputs.w, "w");
  tensors.c = data(inputs.c, "c");
  tensors.w_film = data(inputs.w_film, "w_film");
  tensors.w_embed1 = data(inputs.w_embed1, "w_embed1");
  tensors.w_embed2 = data(inputs.w_embed2, "w_embed2");
  tensors.w_out = data(inputs.w_out, "w_out");
  tensors.b_out = data(inputs.b_out, "b_out");
  if (inputs.labels) {
    tensors.num_classes = size(*inputs.class_embedding, 0);
    STD_TORCH_CHECK(tensors.num_classes > 0, "class_embedding: expected at least one class");
    tensors.class_embedding = data(*inputs.class_embedding, "class_embedding");
    tensors.labels = static_cast<const int64_t*>(data(*inputs.labels, "labels"));
  }
  tensors.frequencies = {data(inputs.frequencies, "frequencies"),
                         element_type(inputs.frequencies, "frequencies")};
  tensors.sin_first = inputs.sin_first;
  return tensors;
}

}  // namespace genssl::cuda
