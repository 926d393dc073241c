// A flow whose packed weights outlive one call.
#include "kernels/coupling/flow_plan.h"

#include <pybind11/pybind11.h>
#include <pybind11/stl.h>

#include <algorithm>
#include <array>
#include <cstdint>
#include <map>
#include <memory>
#include <numeric>
#include <optional>
#include <string>
#include <tuple>
#include <vector>

#include "csrc/memory.h"
#include "csrc/native/packed_networks.h"
#include "csrc/native/parallel.h"

namespace genssl {
namespace {

using Columns = std::vector<int64_t>;

const std::map<std::string, Clamp> kClamps{
    {"none", Clamp::none},         {"tanh", Clamp::tanh},
    {"atan", Clamp::atan},         {"sigmoid", Clamp::sigmoid},
    {"softplus", Clamp::softplus}, {"reciprocal_sigmoid", Clamp::reciprocal_sigmoid},
    {"zuko", Clamp::zuko},         {"additive", Clamp::additive}};

template <class T>
class FlowPlan {
 public:
  explicit FlowPlan(int64_t dim) : dim_(dim) {}

  // Where the state keeps the columns of the noise.
  void set_columns(Columns columns) { columns_ = keep(std::move(columns)); }

  void add_affine(Columns inputs, Columns outputs, int64_t context_features, bool inverse,
                  const NetworkAddresses& network, const std::string& clamp, double limit,
                  double offset, double min_scale, bool shift_first) {
    FlowLayer<T>& layer = add_coupling(FlowLayerKind::affine, std::move(inputs), std::move(outputs),
                                       context_features, inverse, network);
    layer.affine = {kClamps.at(clamp), static_cast<T>(limit), static_cast<T>(offset),
                    static_cast<T>(min_scale), shift_first};
  }

  // bounds: left, right, bottom, top; minima: of width, height and derivative.
  void add_spline(Columns inputs, Columns outputs, int64_t context_features, bool inverse,
                  const NetworkAddresses& network, int bins,
                  const std::optional<std::string>& tails, bool zuko,
                  const std::array<double, 4>& bounds, const std::array<double, 3>& minima,
                  double slope) {
    FlowLayer<T>& layer = add_coupling(FlowLayerKind::spline, std::move(inputs), std::move(outputs),
                                       context_features, inverse, network);
    SplineOptions<T>& spline = layer.spline;
    spline.bins = bins;
    spline.tails = !tails ? Tails::none : *tails == "linear" ? Tails::linear : Tails::circular;
    spline.parameterization = zuko ? SplineParameterization::zuko : SplineParameterization::softmax;
    T* const bound[] = {&spline.left, &spline.right, &spline.bottom, &spline.top};
    T* const minimum[] = {&spline.min_width, &spline.min_height, &spline.min_derivative};
    for (size_t i = 0; i < bounds.size(); ++i) *bound[i] = static_cast<T>(bounds[i]);
    for (size_t i = 0; i < minima.size(); ++i) *minimum[i] = static_cast<T>(minima[i]);
    spline.slope = static_cast<T>(slope);
  }

  // Gives the last layer convolutions for a network, and the product of the context that is added
  // to the first one, if any.
  void set_convolutions(const ConvNetAddresses& network, const NetworkAddresses& context) {
    layers_.back().convolutions = keep(network);
    layers_.back().context_network = keep(context);
  }

  // Makes the last layer, which reads and transforms every column, invertible: its network without
  // context, and the product that the context adds to the first layer, if any.
  void add_masked_inverse(const std::vector<Columns>& degrees, const NetworkAddresses& network,
                          const NetworkAddresses& context) {
    FlowLayer<T>& layer = layers_.back();
    const bool is_spline = layer.kind == FlowLayerKind::spline;
    const int64_t rows = std::get<2>(std::get<0>(network).back());
    const int64_t parameters = rows / layer.outputs.count;
    const ElementwiseOptions<T> transform{.is_spline = is_spline,
                                          .has_scale = !is_spline && parameters == 2,
                                          .scale_first = false,
                                          .affine = layer.affine,
                                          .spline = layer.spline};
    layer.context_network = keep(context);
    masked_.push_back(std::make_unique<PackedMADE<T>>(degrees, network, transform, parameters,
                                                      layer.context_features > 0));
    layer.masked = masked_.back()->view();
  }

  void add_linear(Columns columns, const NetworkAddresses& matrix,
                  const NetworkAddresses& inverse_matrix, uintptr_t bias, double log_abs_det) {
    FlowLayer<T>& layer = add(FlowLayerKind::linear, columns, columns);
    layer.network = keep(matrix);
    layer.inverse_network = keep(inverse_matrix);
    layer.shift = keep(bias, layer.outputs.count);
    layer.log_abs_det = log_abs_det;
  }

  // A matrix at every pixel, as 1x1 convolutions.
  void add_channel_linear(Columns columns, const ConvNetAddresses& matrix,
                          const ConvNetAddresses& inverse_matrix, double log_abs_det) {
    FlowLayer<T>& layer = add(FlowLayerKind::linear, columns, columns);
    layer.convolutions = keep(matrix);
    layer.inverse_convolutions = keep(inverse_matrix);
    layer.log_abs_det = log_abs_det;
  }

  void add_elementwise(Columns columns, uintptr_t shift, uintptr_t log_scale, double log_abs_det) {
    FlowLayer<T>& layer = add(FlowLayerKind::elementwise, {}, std::move(columns));
    layer.shift = keep(shift, layer.outputs.count);
    layer.log_scale = keep(log_scale, layer.outputs.count);
    layer.log_abs_det = log_abs_det;
  }

  void run(bool inverse, int64_t batch, uintptr_t x, uintptr_t context, int64_t context_stride,
           int64_t seed, int64_t step, int64_t first_sample, uintptr_t y, uintptr_t log_abs_det,
           uintptr_t log_prob) const {
    const FlowPlanArgs<T> args{.layers = layers_.data(),
                               .num_layers = static_cast<int64_t>(layers_.size()),
                               .dim = dim_,
                               .columns = columns_,
                               .inverse = inverse,
                               .x = pointer<const T>(x),
                               .context = pointer<const T>(context),
                               .context_stride = context_stride,
                               .seed = static_cast<uint64_t>(seed),
                               .step = static_cast<uint32_t>(step),
                               .first_sample = static_cast<uint64_t>(first_sample),
                               .y = pointer<T>(y),
                               .log_abs_det = pointer<T>(log_abs_det),
                               .log_prob = pointer<T>(log_prob)};
    parallel_for(0, batch, grain(), [&](int64_t begin, int64_t end) {
      const int64_t scratch = GENSSL_DISPATCH(flow_plan_workspace<T>)(args, end - begin);
      GENSSL_DISPATCH(flow_plan<T>)(args, begin, end, thread_scratch<T>(scratch));
    });
  }

 private:
  // What is worth a thread: about 20 microseconds.
  static constexpr int64_t kGrainMultiplications = 1 << 20;

  // Weights of perceptrons are read once for a range.
  int64_t grain() const {
    return std::max<int64_t>(conv_nets_.empty() ? 4 : 1, kGrainMultiplications / work_);
  }

  FlowLayer<T>& add(FlowLayerKind kind, Columns inputs, Columns outputs) {
    FlowLayer<T>& layer = layers_.emplace_back();
    layer.kind = kind;
    layer.inputs = keep(std::move(inputs));
    layer.outputs = keep(std::move(outputs));
    return layer;
  }

  FlowLayer<T>& add_coupling(FlowLayerKind kind, Columns inputs, Columns outputs,
                             int64_t context_features, bool inverse,
                             const NetworkAddresses& network) {
    FlowLayer<T>& layer = add(kind, std::move(inputs), std::move(outputs));
    layer.context_features = context_features;
    layer.inverse = inverse;
    layer.network = keep(network);
    return layer;
  }

  FlowColumns keep(Columns columns) {
    return in_runs(kept_columns_.emplace_back(std::move(columns)));
  }
  const T* keep(uintptr_t values, int64_t count) {
    T* copy = kept_values_.emplace_back().reserve(count);
    std::copy_n(pointer<const T>(values), count, copy);
    return copy;
  }
  Perceptron<T> keep(const NetworkAddresses& network) {
    networks_.push_back(std::make_unique<PackedNetwork<T>>(network));
    work_ += networks_.back()->multiplications();
    return networks_.back()->view();
  }
  const ConvNet<T>* keep(const ConvNetAddresses& network) {
    conv_nets_.push_back(std::make_unique<PackedConvNet<T>>(network));
    work_ += conv_nets_.back()->multiplications();
    return conv_nets_.back()->view();
  }

  // Runs of one length, which divides every stretch of neighbours.
  static FlowColumns in_runs(const Columns& columns) {
    const auto count = static_cast<int64_t>(columns.size());
    int64_t run = count;
    for (int64_t i = 1; i < count; ++i) {
      if (columns[i] != columns[i - 1] + 1) run = std::gcd(run, i);
    }
    return {columns.data(), count, std::max<int64_t>(run, 1)};
  }

  int64_t dim_, work_ = 1;
  FlowColumns columns_{};
  std::vector<FlowLayer<T>> layers_;
  std::vector<Columns> kept_columns_;
  std::vector<AlignedBuffer<T>> kept_values_;
  std::vector<std::unique_ptr<PackedNetwork<T>>> networks_;
  std::vector<std::unique_ptr<PackedConvNet<T>>> conv_nets_;
  std::vector<std::unique_ptr<PackedMADE<T>>> masked_;
};

template <class T>
void bind(pybind11::module_& module, const char* name) {
  namespace py = pybind11;
  using Plan = FlowPlan<T>;
  using Unlocked = py::call_guard<py::gil_scoped_release>;
  py::class_<Plan>(module, name,
                   "A flow with packed copies of its weights; tensors are given by address.")
      .def(py::init<int64_t>(), py::arg("dim"))
      .def("set_columns", &Plan::set_columns, py::arg("columns"))
      .def("add_affine", &Plan::add_affine, py::arg("inputs"), py::arg("outputs"),
           py::arg("context_features"), py::arg("inverse"), py::arg("network"), py::arg("clamp"),
           py::arg("limit"), py::arg("offset"), py::arg("min_scale"), py::arg("shift_first"))
      .def("add_spline", &Plan::add_spline, py::arg("inputs"), py::arg("outputs"),
           py::arg("context_features"), py::arg("inverse"), py::arg("network"), py::arg("bins"),
           py::arg("tails"), py::arg("zuko"), py::arg("bounds"), py::arg("minima"),
           py::arg("slope"))
      .def("set_convolutions", &Plan::set_convolutions, py::arg("network"), py::arg("context"))
      .def("add_masked_inverse", &Plan::add_masked_inverse, py::arg("degrees"), py::arg("network"),
           py::arg("context"))
      .def("add_linear", &Plan::add_linear, py::arg("columns"), py::arg("matrix"),
           py::arg("inverse_matrix"), py::arg("bias"), py::arg("log_abs_det"))
      .def("add_channel_linear", &Plan::add_channel_linear, py::arg("columns"), py::arg("matrix"),
           py::arg("inverse_matrix"), py::arg("log_abs_det"))
      .def("add_elementwise", &Plan::add_elementwise, py::arg("columns"), py::arg("shift"),
           py::arg("log_scale"), py::arg("log_abs_det"))
      .def("run", &Plan::run, py::arg("inverse"), py::arg("batch"), py::arg("x"),
           py::arg("context"), py::arg("context_stride"), py::arg("seed"), py::arg("step"),
           py::arg("first_sample"), py::arg("y"), py::arg("log_abs_det"), py::arg("log_prob"),
           Unlocked());
}

}  // namespace

void bind_flow_plan(pybind11::module_& module) {
  bind<float>(module, "FlowPlanFloat");
  bind<double>(module, "FlowPlanDouble");
}

}  // namespace genssl
