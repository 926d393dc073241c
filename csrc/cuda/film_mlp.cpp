#include "csrc/cuda/film_mlp_tensors.h"

namespace genssl::cuda {
namespace {

Tensor film_mlp(Tensor x, Tensor t, Tensor frequencies, bool sin_first, Tensor w_in, Tensor b_in,
                Tensor w, Tensor c, Tensor w_film, Tensor w_embed1, Tensor w_embed2, Tensor w_out,
                Tensor b_out, OptionalTensor class_embedding, OptionalTensor labels) {
  const torch::stable::accelerator::DeviceGuard guard(x.get_device_index());
  FilmMLPInputs inputs{x,     frequencies, sin_first,       w_in,     b_in,
                       w,     c,           w_film,          w_embed1, w_embed2,
                       w_out, b_out,       class_embedding, labels};
  inputs.prepare(x.scalar_type());
  STD_TORCH_CHECK(t.dim() == 0 || (t.dim() == 1 && t.size(0) == x.size(0)),
                  "t: expected the shape [] or [", x.size(0), "], got ", shape_of(t));
  t = on_device_of(x, t, "t");
  Tensor y = new_empty_like(inputs.x);
  if (y.numel() == 0) return y;
  const FilmMLPArgs args{film_mlp_tensors(inputs),
                         x.size(0),
                         {t.const_data_ptr(), element_type(t, "t")},
                         t.dim() == 1,
                         y.mutable_data_ptr()};
  size_t bytes = 0;
  check_launch(film_mlp_workspace(args, &bytes), "film_mlp");
  const Tensor workspace = scratch(x, bytes);
  void* stream = current_stream(x.get_device_index());
  check_launch(launch_film_mlp(args, workspace.mutable_data_ptr(), stream), "film_mlp");
  return y;
}

}  // namespace
}  // namespace genssl::cuda

STABLE_TORCH_LIBRARY_IMPL(genssl_fast, CUDA, m) {
  m.impl("_film_mlp", TORCH_BOX(&genssl::cuda::film_mlp));
}
