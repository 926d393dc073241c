#include "csrc/cuda/film_mlp_inputs.h"

#include <algorithm>
#include <initializer_list>
#include <limits>
#include <sstream>

namespace genssl::cuda {
namespace {

void write_shape(std::ostringstream* text, const int64_t* begin, const int64_t* end) {
  *text << "[";
  for (const int64_t* size = begin; size != end; ++size) {
    *text << (size == begin ? "" : ", ") << *size;
  }
  *text << "]";
}

void check_shape(const Tensor& tensor, const char* name, const char* meaning,
                 std::initializer_list<int64_t> expected) {
  const auto sizes = tensor.sizes();
  if (std::equal(sizes.begin(), sizes.end(), expected.begin(), expected.end())) return;
  std::ostringstream text;
  text << name << ": expected shape " << meaning << " = ";
  write_shape(&text, expected.begin(), expected.end());
  text << ", got ";
  write_shape(&text, sizes.begin(), sizes.end());
  STD_TORCH_CHECK(false, text.str());
}

void check_rank(const Tensor& tensor, const char* name, const char* meaning, int64_t rank) {
  STD_TORCH_CHECK(tensor.dim() == rank, name, ": expected shape ", meaning, ", got ", tensor.dim(),
                  " dimensions");
}

int32_t size(const Tensor& tensor, int64_t dimension) {
  const int64_t size = tensor.size(dimension);
  STD_TORCH_CHECK(size <= std::numeric_limits<int32_t>::max(), "a dimension of ", size,
                  " is larger than the kernels can index");
  return static_cast<int32_t>(size);
}

}  // namespace

void FilmMLPInputs::prepare() {
  check_rank(x, "x", "[B, D]", 2);
  check_rank(w, "w", "[L, H, H]", 3);
  check_rank(w_embed1, "w_embed1", "[E, T]", 2);
  const int64_t dim = x.size(1), blocks = w.size(0), hidden = w.size(1);
  const int64_t embed = w_embed1.size(0), time_dim = w_embed1.size(1);
  check_shape(w_in, "w_in", "[H, D]", {hidden, dim});
  check_shape(b_in, "b_in", "[H]", {hidden});
  check_shape(w, "w", "[L, H, H]", {blocks, hidden, hidden});
  check_shape(c, "c", "[L, H]", {blocks, hidden});
  check_shape(w_film, "w_film", "[L, 2H, E]", {blocks, 2 * hidden, embed});
  check_shape(w_embed2, "w_embed2", "[E, E]", {embed, embed});
  check_shape(w_out, "w_out", "[D, H]", {dim, hidden});
  check_shape(b_out, "b_out", "[D]", {dim});
  check_shape(frequencies, "frequencies", "[T // 2]", {time_dim / 2});
  STD_TORCH_CHECK(blocks > 0 && hidden > 0 && embed > 0 && time_dim > 0,
                  "w: expected at least one block and widths of at least 1");
  STD_TORCH_CHECK(!labels || class_embedding,
                  "labels: expected None for a network without class_embedding");
  const auto adopt = [this](Tensor* tensor, const char* name) {
    *tensor = on_device_of(x, *tensor, name);
    STD_TORCH_CHECK(tensor->scalar_type() == x.scalar_type(), name, ": expected the dtype of x");
  };
  adopt(&x, "x");
  adopt(&w_in, "w_in");
  adopt(&b_in, "b_in");
  adopt(&w, "w");
  adopt(&c, "c");
  adopt(&w_film, "w_film");
  adopt(&w_embed1, "w_embed1");
  adopt(&w_embed2, "w_embed2");
  adopt(&w_out, "w_out");
  adopt(&b_out, "b_out");
  frequencies = on_device_of(x, frequencies, "frequencies");
  if (class_embedding) {
    check_rank(*class_embedding, "class_embedding", "[K, E]", 2);
    check_shape(*class_embedding, "class_embedding", "[K, E]", {class_embedding->size(0), embed});
    adopt(&*class_embedding, "class_embedding");
  }
  if (labels) {
    check_shape(*labels, "labels", "[B]", {x.size(0)});
    STD_TORCH_CHECK(labels->scalar_type() == torch::headeronly::ScalarType::Long,
                    "labels: expected dtype int64");
    labels = on_device_of(x, *labels, "labels");
  }
}

FilmMLPTensors FilmMLPInputs::tensors(bool sin_first) const {
  FilmMLPTensors result{};
  result.dim = size(x, 1);
  result.hidden = size(w, 1);
  result.blocks = size(w, 0);
  result.embed = size(w_embed1, 0);
  result.time_dim = size(w_embed1, 1);
  result.num_classes = class_embedding ? size(*class_embedding, 0) : 0;
  result.type = element_type(x, "x");
  result.x = pointer(x);
  result.w_in = pointer(w_in);
  result.b_in = pointer(b_in);
  result.w = pointer(w);
  result.c = pointer(c);
  result.w_film = pointer(w_film);
  result.w_embed1 = pointer(w_embed1);
  result.w_embed2 = pointer(w_embed2);
  result.w_out = pointer(w_out);
  result.b_out = pointer(b_out);
  result.class_embedding = pointer(class_embedding);
  result.labels = static_cast<const int64_t*>(pointer(labels));
  result.frequencies = {pointer(frequencies), element_type(frequencies, "frequencies")};
  result.sin_first = sin_first;
  return result;
}

}  // namespace genssl::cuda
