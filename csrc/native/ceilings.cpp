// The machine's limits as Python functions, run on PyTorch's threads.
#include "kernels/common/ceilings.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <cstdint>
#include <stdexcept>
#include <vector>

#include "csrc/native/parallel.h"

namespace genssl {
namespace {

constexpr int64_t kStreamGrain = 32768;

void run_stream(const std::vector<uintptr_t>& reads, const std::vector<uintptr_t>& writes,
                int64_t count) {
  if (reads.size() > kMaxStreamReads)
    throw std::invalid_argument("reads: expected at most 4 addresses");
  if (writes.empty() || writes.size() > kMaxStreamWrites) {
    throw std::invalid_argument("writes: expected 1 or 2 addresses");
  }
  StreamArgs args{};
  args.num_reads = static_cast<int>(reads.size());
  args.num_writes = static_cast<int>(writes.size());
  std::transform(reads.begin(), reads.end(), args.reads,
                 [](uintptr_t address) { return reinterpret_cast<const float*>(address); });
  std::transform(writes.begin(), writes.end(), args.writes,
                 [](uintptr_t address) { return reinterpret_cast<float*>(address); });
  auto* kernel = GENSSL_DISPATCH(stream);
  parallel_for(0, count, kStreamGrain,
               [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
}

// The micro-kernel on 4 tiles of rows (first level cache) and 4 panels (second level) of a given
// depth.
class TileRate {
 public:
  explicit TileRate(int64_t depth) : depth_(depth) {
    if (depth < 1) throw std::invalid_argument("depth: expected a positive number");
    const TileShape shape = GENSSL_DISPATCH(tile_shape)();
    activations_.assign(kTiles * shape.rows * depth, 1.0f);
    panels_.assign(kPanels * shape.columns * depth + kAlignment, 1.0f);
    flops_ = 2.0 * kTiles * shape.rows * kPanels * shape.columns * depth;
  }

  double flops() const { return flops_; }

  void run(int64_t items) const {
    const auto address = reinterpret_cast<uintptr_t>(panels_.data());
    const uintptr_t bytes = kAlignment * sizeof(float);
    const auto* panels = reinterpret_cast<const float*>((address + bytes - 1) / bytes * bytes);
    const TilesArgs args{activations_.data(), panels, kTiles, kPanels, depth_};
    auto* kernel = GENSSL_DISPATCH(multiply_tiles);
    parallel_for(0, items, 1, [&](int64_t begin, int64_t end) { kernel(args, begin, end); });
  }

 private:
  static constexpr int64_t kTiles = 4, kPanels = 4;
  static constexpr int64_t kAlignment = 16;  // floats: a cache line

  int64_t depth_;
  double flops_;
  std::vector<float> activations_, panels_;
};

}  // namespace

void bind_ceilings(pybind11::module_& module) {
  namespace py = pybind11;
  module.def(
      "stream", &run_stream, py::arg("reads"), py::arg("writes"), py::arg("count"),
      py::call_guard<py::gil_scoped_release>(),
      "Writes the sum of up to 4 fp32 streams of `count` elements, given by address, to 1 or 2.");
  py::class_<TileRate>(module, "TileRate",
                       "The matrix micro-kernel on operands that stay in the caches.")
      .def(py::init<int64_t>(), py::arg("depth"))
      .def_property_readonly("flops", &TileRate::flops, "Floating-point operations of one item.")
      .def("run", &TileRate::run, py::arg("items"), py::call_guard<py::gil_scoped_release>());
}

}  // namespace genssl
