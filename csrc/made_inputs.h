// The arguments of _made_inverse: checked, contiguous, and as the kernels take them.
#pragma once

#include <tuple>
#include <vector>

#include "csrc/common.h"
#include "csrc/made_schedule.h"
#include "csrc/memory.h"
#include "kernels/causal/made_inverse.h"

namespace genssl {

using Tensors = std::vector<Tensor>;
using Integers = std::vector<int64_t>;

// Which numbers a dimension has; the order of genssl_fast.reference.causal.LAYOUTS.
enum class MADELayout { shift, interleaved, interleaved_scale_first };

// The network's last arguments: a spline where it has bins, else affine.
struct MADETransform {
  MADELayout layout;
  AffineOptions<double> affine;
  SplineOptions<double> spline;

  int64_t parameters() const {
    if (spline.bins > 0) return num_parameters(spline);
    return layout == MADELayout::shift ? 1 : 2;
  }
  template <class T>
  ElementwiseOptions<T> options() const {
    const auto number = [](double value) { return static_cast<T>(value); };
    const bool has_scale = layout != MADELayout::shift;
    return {.is_spline = spline.bins > 0,
            .has_scale = has_scale,
            .scale_first = layout == MADELayout::interleaved_scale_first,
            .affine = {.clamp = has_scale ? affine.clamp : Clamp::additive,
                       .limit = number(affine.limit),
                       .offset = number(affine.offset),
                       .min_scale = number(affine.min_scale),
                       .shift_first = affine.shift_first},
            .spline = {.bins = spline.bins,
                       .tails = spline.tails,
                       .parameterization = spline.parameterization,
                       .left = number(spline.left),
                       .right = number(spline.right),
                       .bottom = number(spline.bottom),
                       .top = number(spline.top),
                       .min_width = number(spline.min_width),
                       .min_height = number(spline.min_height),
                       .min_derivative = number(spline.min_derivative),
                       .slope = number(spline.slope)}};
  }
};

struct MADEInputs {
  Tensors weights, biases;
  Tensors degrees;  // of the input and the hidden layers
  // Of every layer, [B, in] and [B, out], or null.
  std::vector<std::optional<Tensor>> input_gates, output_gates;
  Integers width;            // of the input, the hidden layers and the parameters
  int64_t activated, skips;  // a bit for every layer
  Activation activation;
  MADETransform transform;

  MADEInputs(const Tensor& y, const Tensors& all_weights, const Tensors& all_biases,
             const Tensors& all_degrees, const Tensors& all_input_gates,
             const Tensors& all_output_gates, int64_t gated_inputs, int64_t gated_outputs,
             int64_t activated_bits, int64_t skip_bits, int64_t activation_place,
             const MADETransform& elementwise)
      : activated(activated_bits),
        skips(skip_bits),
        activation(static_cast<Activation>(activation_place)),
        transform(elementwise) {
    const ScalarType type = y.scalar_type();
    STD_TORCH_CHECK(type == ScalarType::Float || type == ScalarType::Double,
                    "y: expected float32 or float64, got ", torch::headeronly::toString(type));
    STD_TORCH_CHECK(y.dim() == 2 && y.size(1) > 0, "y: expected [B, D], got ", shape_of(y));
    const size_t count = all_weights.size();
    STD_TORCH_CHECK(count > 0 && all_biases.size() == count && all_degrees.size() == count,
                    "weights: expected as many as biases and degrees");
    width.push_back(y.size(1));
    for (size_t i = 0; i < count; ++i) add_layer(y, all_weights[i], all_biases[i], all_degrees[i]);
    const int64_t rows = y.size(1) * transform.parameters();
    STD_TORCH_CHECK(width.back() == rows, "weights: expected ", rows, " rows of the last, got ",
                    width.back());
    input_gates = spread_gates(y, all_input_gates, gated_inputs, 0, "input_gates");
    output_gates = spread_gates(y, all_output_gates, gated_outputs, 1, "output_gates");
  }

 private:
  // One for every layer from those of the layers whose bit is set; a layer's units are
  // width[layer + side].
  std::vector<std::optional<Tensor>> spread_gates(const Tensor& y, const Tensors& given,
                                                  int64_t gated, size_t side,
                                                  const char* name) const {
    std::vector<std::optional<Tensor>> gates(weights.size());
    auto next = given.begin();
    for (size_t i = 0; i < gates.size(); ++i) {
      if (!(gated >> i & 1)) continue;
      STD_TORCH_CHECK(next != given.end(), name, ": expected one for every layer that has gates");
      check_type(*next, name, y.scalar_type());
      check_shape(*next, name, {y.size(0), width[i + side]});
      gates[i] = as_contiguous(*next++);
    }
    STD_TORCH_CHECK(next == given.end(), name, ": expected one for every layer that has gates");
    return gates;
  }

  void add_layer(const Tensor& y, const Tensor& weight, const Tensor& bias, const Tensor& degree) {
    const int64_t columns = width.back();
    check_type(weight, "weights", y.scalar_type());
    check_type(bias, "biases", y.scalar_type());
    check_type(degree, "degrees", ScalarType::Long);
    STD_TORCH_CHECK(weight.dim() == 2 && weight.size(1) == columns, "weights: expected [out, ",
                    columns, "], got ", shape_of(weight));
    const int64_t rows = weight.size(0);
    if (bias.dim() == 1) {
      check_shape(bias, "biases", {rows});
    } else {
      check_shape(bias, "biases", {y.size(0), rows});
    }
    check_shape(degree, "degrees", {columns});
    weights.push_back(as_contiguous(weight));
    biases.push_back(as_contiguous(bias));
    degrees.push_back(as_contiguous(degree));
    width.push_back(rows);
  }
};

template <class T>
const T* data_or_null(const std::optional<Tensor>& tensor) {
  return tensor ? static_cast<const T*>(tensor->const_data_ptr()) : nullptr;
}

// Arrays of pointers and offsets behind a MADENetwork.
template <class T>
class MADEArrays {
 public:
  explicit MADEArrays(const MADEInputs& inputs)
      : inputs_(inputs), degrees_(values_of(inputs.degrees)), schedule_(degrees_) {
    for (size_t i = 0; i < inputs.weights.size(); ++i) add_matrix(i);
    for (size_t i = 0; i < inputs.width.size(); ++i) {
      offset_.push_back(offset_.back() + inputs.width[i]);
      order_.push_back(schedule_.order[i].data());
      end_.push_back(schedule_.end[i].data());
    }
  }

  // Elements of the packed weights: those that a mask keeps, and few more.
  int64_t packed_size() const { return packed_size_; }

  // Without memory for the packed weights.
  MADENetwork<T> network() const {
    return {.dim = inputs_.width[0],
            .parameters = inputs_.transform.parameters(),
            .matrices = static_cast<int64_t>(inputs_.weights.size()),
            .blocks = schedule_.blocks(),
            .width = inputs_.width.data(),
            .offset = offset_.data(),
            .order = order_.data(),
            .end = end_.data(),
            .block_step = schedule_.block_step.data(),
            .packed_offset = packed_offset_.data(),
            .weights = weights_.data(),
            .biases = biases_.data(),
            .bias_stride = bias_stride_.data(),
            .input_gates = input_gates_.data(),
            .output_gates = output_gates_.data(),
            .activated = inputs_.activated,
            .skips = inputs_.skips,
            .packed = nullptr,
            .activation = inputs_.activation,
            .transform = inputs_.transform.options<T>()};
  }

 private:
  static std::vector<Integers> values_of(const Tensors& degrees) {
    std::vector<Integers> values;
    for (const Tensor& degree : degrees) {
      const auto* first = static_cast<const int64_t*>(degree.const_data_ptr());
      values.emplace_back(first, first + degree.numel());
    }
    return values;
  }

  void add_matrix(size_t i) {
    const bool is_last = i + 1 == inputs_.weights.size();
    weights_.push_back(static_cast<const T*>(inputs_.weights[i].const_data_ptr()));
    biases_.push_back(static_cast<const T*>(inputs_.biases[i].const_data_ptr()));
    bias_stride_.push_back(inputs_.biases[i].dim() == 2 ? inputs_.width[i + 1] : 0);
    input_gates_.push_back(data_or_null<T>(inputs_.input_gates[i]));
    output_gates_.push_back(data_or_null<T>(inputs_.output_gates[i]));
    if (inputs_.skips >> i & 1) {
      STD_TORCH_CHECK(i > 0 && !is_last && degrees_[i + 1] == degrees_[i - 1],
                      "skips: expected layer ", i, " to have the degrees of what it adds");
    }
    const auto &rows = schedule_.end[i + 1], &columns = schedule_.end[i];
    for (int64_t block = 0; block < schedule_.blocks(); ++block) {
      const int64_t first = schedule_.block_step[block], last = schedule_.block_step[block + 1];
      packed_offset_.push_back(packed_size_);
      const int64_t units = rows[last] - rows[first];
      packed_size_ += units * columns[last] * (is_last ? inputs_.transform.parameters() : 1);
    }
  }

  const MADEInputs& inputs_;
  std::vector<Integers> degrees_;
  MADESchedule schedule_;
  std::vector<const T*> weights_, biases_, input_gates_, output_gates_;
  std::vector<const int64_t*> order_, end_;
  Integers offset_{0}, bias_stride_, packed_offset_;
  int64_t packed_size_ = 0;
};

// The operation, for a device with a Guard and run<T>(inputs, y, x, log_abs_det).
template <class Device>
std::tuple<Tensor, Tensor> made_inverse(Tensor y, Tensors weights, Tensors biases, Tensors degrees,
                                        Tensors input_gates, Tensors output_gates,
                                        int64_t gated_inputs, int64_t gated_outputs,
                                        int64_t activated, int64_t skips, int64_t activation,
                                        int64_t layout, int64_t clamp, bool shift_first,
                                        double limit, double offset, double min_scale, int64_t bins,
                                        int64_t tails, bool zuko, double left, double right,
                                        double bottom, double top, double min_width,
                                        double min_height, double min_derivative, double slope) {
  [[maybe_unused]] const typename Device::Guard guard(y);
  const MADETransform transform{
      static_cast<MADELayout>(layout),
      {static_cast<Clamp>(clamp), limit, offset, min_scale, shift_first},
      {static_cast<int>(bins), static_cast<Tails>(tails), static_cast<SplineParameterization>(zuko),
       left, right, bottom, top, min_width, min_height, min_derivative, slope}};
  const MADEInputs inputs(y, weights, biases, degrees, input_gates, output_gates, gated_inputs,
                          gated_outputs, activated, skips, activation, transform);
  const Tensor contiguous = as_contiguous(y);
  Tensor x = new_empty_like(contiguous);
  Tensor log_abs_det = new_empty(y, y.sizes().slice(0, 1), y.scalar_type());
  if (y.numel() == 0) return {x, log_abs_det};
  if (y.scalar_type() == ScalarType::Double) {
    Device::template run<double>(inputs, contiguous, x, log_abs_det);
  } else {
    Device::template run<float>(inputs, contiguous, x, log_abs_det);
  }
  return {x, log_abs_det};
}

}  // namespace genssl
