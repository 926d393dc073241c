#include <torch/csrc/stable/library.h>

#include "csrc/cuda/film_mlp_inputs.h"

namespace genssl::cuda {
namespace {

Tensor film_mlp(Tensor x, Tensor t, Tensor frequencies, bool sin_first, Tensor w_in, Tensor b_in,
                Tensor w, Tensor c, Tensor w_film, Tensor w_embed1, Tensor w_embed2, Tensor w_out,
                Tensor b_out, std::optional<Tensor> class_embedding, std::optional<Tensor> labels) {
  FilmMLPInputs inputs{x,      frequencies, w_in,     b_in,  w,     c,
                       w_film, w_embed1,    w_embed2, w_out, b_out, class_embedding,
                       labels};
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  inputs.prepare();
  const int64_t batch = inputs.x.size(0);
  STD_TORCH_CHECK(t.dim() == 0 || (t.dim() == 1 && t.size(0) == batch),
                  "t: expected one time, or one for each of the ", batch, " samples, got ",
                  t.numel());
  t = on_device_of(inputs.x, t, "t");
  Tensor output = torch::stable::new_empty(inputs.x, inputs.x.sizes());
  if (output.numel() == 0) return output;
  const FilmMLPArgs args{inputs.tensors(sin_first),
                         batch,
                         {pointer(t), element_type(t, "t")},
                         t.dim() == 1,
                         output.mutable_data_ptr()};
  size_t bytes = 0;
  check_launch(film_mlp_workspace(args, &bytes), "film_mlp");
  const Tensor workspace = scratch(inputs.x, bytes);
  void* stream = current_stream(x.get_device_index());
  check_launch(launch_film_mlp(args, workspace.mutable_data_ptr(), stream), "film_mlp");
  return output;
}

}  // namespace
}  // namespace genssl::cuda

STABLE_TORCH_LIBRARY_IMPL(genssl_fast, CUDA, library) {
  library.impl("_film_mlp", TORCH_BOX(&genssl::cuda::film_mlp));
}
