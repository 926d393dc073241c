// genssl_fast._native: objects that outlive one call and measurements, without PyTorch.
// It takes pointers as integers; Python keeps the tensors alive.
#include <pybind11/pybind11.h>

#include "csrc/native/parallel.h"
#include "kernels/common/isa.h"

namespace genssl {

ParallelFor& parallel_for_function() {
  static ParallelFor function = nullptr;
  return function;
}

void bind_ceilings(pybind11::module_& module);
void bind_contents(pybind11::module_& module);
void bind_film_mlp_plan(pybind11::module_& module);
void bind_flow_plan(pybind11::module_& module);

}  // namespace genssl

PYBIND11_MODULE(_native, module) {
  module.def(
      "isa", [] { return genssl::isa_name(genssl::current_isa()); },
      "The instruction set that CPU kernels use: avx512, avx2 or baseline.");
  module.def(
      "set_parallel_for",
      [](uintptr_t address) {
        genssl::parallel_for_function() = reinterpret_cast<genssl::ParallelFor>(address);
      },
      "Address of a function with the signature of LibTorch's torch_parallel_for.");
  genssl::bind_ceilings(module);
  genssl::bind_contents(module);
  genssl::bind_film_mlp_plan(module);
  genssl::bind_flow_plan(module);
}
