#include "csrc/common.h"
#include "csrc/film_mlp_inputs.h"
#include "csrc/film_mlp_runner.h"
#include "csrc/parallel.h"

namespace genssl {
namespace {

template <class T>
void run(const FilmMLPInputs& inputs, const Tensor& t, Tensor& y) {
  const auto* times = static_cast<const T*>(t.const_data_ptr());
  FilmMLPRunner<T>(inputs.network<T>(), inputs.classes(), thread_memory<T>())
      .forward(static_cast<const T*>(inputs.x.const_data_ptr()), times, t.dim() == 0,
               inputs.label_data(), inputs.x.size(0), static_cast<T*>(y.mutable_data_ptr()));
}

Tensor film_mlp(Tensor x, Tensor t, Tensor frequencies, bool sin_first, Tensor w_in, Tensor b_in,
                Tensor w, Tensor c, Tensor w_film, Tensor w_embed1, Tensor w_embed2, Tensor w_out,
                Tensor b_out, OptionalTensor class_embedding, OptionalTensor labels) {
  FilmMLPInputs inputs{x,     frequencies, sin_first,       w_in,     b_in,
                       w,     c,           w_film,          w_embed1, w_embed2,
                       w_out, b_out,       class_embedding, labels};
  inputs.prepare(compute_type(inputs.x));
  STD_TORCH_CHECK(t.dim() == 0 || (t.dim() == 1 && t.size(0) == x.size(0)),
                  "t: expected the shape [] or [", x.size(0), "], got ", shape_of(t));
  t = contiguous_to(t, compute_type(inputs.x));
  Tensor y = new_empty_like(inputs.x);
  if (compute_type(inputs.x) == ScalarType::Double) {
    run<double>(inputs, t, y);
  } else {
    run<float>(inputs, t, y);
  }
  return contiguous_to(y, x.scalar_type());
}

}  // namespace
}  // namespace genssl

STABLE_TORCH_LIBRARY_IMPL(genssl_fast, CPU, m) {
  m.impl("_film_mlp", TORCH_BOX(&genssl::film_mlp));
}
