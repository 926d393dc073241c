// A FiLM-MLP whose packed weights outlive one call.
#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <array>
#include <cstdint>
#include <memory>
#include <mutex>
#include <stdexcept>

#include "csrc/film_mlp_runner.h"
#include "csrc/native/parallel.h"

namespace genssl {
namespace {

// dim, hidden, blocks, embed, time_dim, classes.
using Widths = std::array<int64_t, 6>;
// w_in, b_in, w, c, w_film, w_embed1, w_embed2, w_out, b_out, class_embedding (0 for none),
// frequencies.
using Addresses = std::array<uintptr_t, 11>;

template <class T>
class FilmMLPPlan {
 public:
  FilmMLPPlan(const Widths& widths, const Addresses& addresses, bool sin_first)
      : runner_(network(widths, addresses, sin_first), widths[5], memory_) {}

  void refresh() {
    const std::lock_guard guard(mutex_);
    runner_.refresh();
  }

  void forward(uintptr_t x, uintptr_t times, bool shared_time, uintptr_t labels, int64_t batch,
               uintptr_t y) {
    const std::lock_guard guard(mutex_);
    runner_.forward(pointer<const T>(x), pointer<const T>(times), shared_time,
                    pointer<const int64_t>(labels), batch, pointer<T>(y));
  }

  void sample(uintptr_t x, uintptr_t labels, int64_t batch, uintptr_t coefficients,
              int64_t num_rows, int64_t num_states, int64_t num_predictions, double clip,
              int64_t seed, int64_t step, int64_t first_sample, uintptr_t noise, uintptr_t y) {
    FilmMLPSampleArgs<T> args{};
    args.num_states = num_states;
    args.num_predictions = num_predictions;
    args.clip = static_cast<T>(clip);
    args.noise = pointer<const T>(noise);
    args.seed = static_cast<uint64_t>(seed);
    args.step = static_cast<uint32_t>(step);
    args.first_sample = static_cast<uint64_t>(first_sample);
    args.batch = batch;
    args.x = pointer<const T>(x);
    args.y = pointer<T>(y);
    const std::lock_guard guard(mutex_);
    runner_.sample(args, pointer<const double>(coefficients), num_rows,
                   pointer<const int64_t>(labels));
  }

 private:
  template <class U>
  static U* pointer(uintptr_t address) {
    return reinterpret_cast<U*>(address);
  }

  static FilmMLPNetwork<T> network(const Widths& widths, const Addresses& addresses,
                                   bool sin_first) {
    FilmMLPNetwork<T> network{};
    network.dim = widths[0];
    network.hidden = widths[1];
    network.blocks = widths[2];
    network.embed = widths[3];
    network.time_dim = widths[4];
    const T** const fields[] = {&network.w_in,       &network.b_in,
                                &network.w,          &network.c,
                                &network.w_film,     &network.w_embed1,
                                &network.w_embed2,   &network.w_out,
                                &network.b_out,      &network.class_embedding,
                                &network.frequencies};
    for (size_t i = 0; i < addresses.size(); ++i) *fields[i] = pointer<const T>(addresses[i]);
    network.sin_first = sin_first;
    return network;
  }

  std::mutex mutex_;
  FilmMLPMemory<T> memory_;
  FilmMLPRunner<T> runner_;
};

template <class T>
void bind(pybind11::module_& module, const char* name) {
  namespace py = pybind11;
  using Plan = FilmMLPPlan<T>;
  using Unlocked = py::call_guard<py::gil_scoped_release>;
  py::class_<Plan>(module, name, "A FiLM-MLP with packed weights; tensors are given by address.")
      .def(py::init<const Widths&, const Addresses&, bool>(), py::arg("widths"),
           py::arg("addresses"), py::arg("sin_first"))
      .def("refresh", &Plan::refresh, Unlocked())
      .def("forward", &Plan::forward, py::arg("x"), py::arg("times"), py::arg("shared_time"),
           py::arg("labels"), py::arg("batch"), py::arg("y"), Unlocked())
      .def("sample", &Plan::sample, py::arg("x"), py::arg("labels"), py::arg("batch"),
           py::arg("coefficients"), py::arg("num_rows"), py::arg("num_states"),
           py::arg("num_predictions"), py::arg("clip"), py::arg("seed"), py::arg("step"),
           py::arg("first_sample"), py::arg("noise"), py::arg("y"), Unlocked());
}

}  // namespace

void bind_film_mlp_plan(pybind11::module_& module) {
  bind<float>(module, "FilmMLPPlanFloat");
  bind<double>(module, "FilmMLPPlanDouble");
}

}  // namespace genssl
