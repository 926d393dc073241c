// Networks of a plan with packed copies of their weights, which are given by address.
#pragma once

#include <algorithm>
#include <cstdint>
#include <map>
#include <string>
#include <tuple>
#include <vector>

#include "csrc/made_schedule.h"
#include "csrc/memory.h"
#include "kernels/coupling/flow_plan.h"

namespace genssl {

// Addresses of matrix and bias, rows (out) and columns (in) of the matrix.
using LayerAddresses = std::tuple<uintptr_t, uintptr_t, int64_t, int64_t>;
// Layers, activation, residual.
using NetworkAddresses = std::tuple<std::vector<LayerAddresses>, std::string, bool>;
// Addresses of kernels and bias, channels out and in, side of a kernel.
using ConvolutionAddresses = std::tuple<uintptr_t, uintptr_t, int64_t, int64_t, int64_t>;
// Layers, activation, height and width.
using ConvNetAddresses =
    std::tuple<std::vector<ConvolutionAddresses>, std::string, int64_t, int64_t>;

inline const std::map<std::string, Activation> kActivations{
    {"relu", Activation::relu},        {"leaky_relu", Activation::leaky_relu},
    {"elu", Activation::elu},          {"silu", Activation::silu},
    {"tanh", Activation::tanh},        {"sigmoid", Activation::sigmoid},
    {"softplus", Activation::softplus}};

template <class T>
T* pointer(uintptr_t address) {
  return reinterpret_cast<T*>(address);
}

// Copies of a network's weights: matrices packed into panels, and biases.
template <class T>
class PackedNetwork {
 public:
  PackedNetwork() = default;
  explicit PackedNetwork(const NetworkAddresses& network)
      : activation_(kActivations.at(std::get<1>(network))), residual_(std::get<2>(network)) {
    for (const auto& [weights, bias, columns, depth] : std::get<0>(network)) {
      T* panels =
          memory_.emplace_back().reserve(GENSSL_DISPATCH(packed_matrix_size<T>)(columns, depth));
      matrices_.push_back({pointer<const T>(weights), panels, columns, depth});
      GENSSL_DISPATCH(pack_matrix<T>)(matrices_.back(), panels);
      matrices_.back().weights = nullptr;
      T* copy = memory_.emplace_back().reserve(columns);
      std::copy_n(pointer<const T>(bias), columns, copy);
      biases_.push_back(copy);
    }
  }

  Perceptron<T> view() const {
    return {matrices_.data(), biases_.data(), static_cast<int64_t>(matrices_.size()), activation_,
            residual_};
  }

  int64_t multiplications() const {
    int64_t count = 0;
    for (const Matrix<T>& matrix : matrices_) count += matrix.columns * matrix.depth;
    return count;
  }

 private:
  std::vector<AlignedBuffer<T>> memory_;
  std::vector<Matrix<T>> matrices_;
  std::vector<const T*> biases_;
  Activation activation_{};
  bool residual_ = false;
};

// Copies of the weights of convolutions.
template <class T>
class PackedConvNet {
 public:
  explicit PackedConvNet(const ConvNetAddresses& network) {
    const auto& [layers, activation, height, width] = network;
    for (const auto& [weights, bias, out, in, side] : layers) {
      const int64_t depth = in * side * side;
      T* packed = memory_.emplace_back().reserve(out * depth);
      GENSSL_DISPATCH(pack_convolution<T>)(pointer<const T>(weights), out, depth, packed);
      T* copy = memory_.emplace_back().reserve(out);
      std::copy_n(pointer<const T>(bias), out, copy);
      layers_.push_back({packed, copy, out, in, side});
      multiplications_ += out * depth * height * width;
    }
    network_ = {layers_.data(), static_cast<int64_t>(layers_.size()), height, width,
                kActivations.at(activation)};
  }
  PackedConvNet(const PackedConvNet&) = delete;

  const ConvNet<T>* view() const { return &network_; }
  int64_t multiplications() const { return multiplications_; }

 private:
  std::vector<AlignedBuffer<T>> memory_;
  std::vector<Convolution<T>> layers_;
  ConvNet<T> network_{};
  int64_t multiplications_ = 0;
};

// A masked network as made_inverse takes it.
template <class T>
class PackedMADE {
 public:
  // degrees: of the input and of the units of each hidden layer. The first bias may be another for
  // every sample.
  PackedMADE(const std::vector<std::vector<int64_t>>& degrees, const NetworkAddresses& network,
             const ElementwiseOptions<T>& transform, int64_t parameters, bool biases_of_samples)
      : schedule_(degrees) {
    const auto& [layers, activation, residual] = network;
    add_width(static_cast<int64_t>(degrees[0].size()));
    for (const auto& [weights, bias, rows, columns] : layers) {
      const bool is_last = weights_.size() + 1 == layers.size();
      bias_stride_.push_back(biases_of_samples && weights_.empty() ? rows : 0);
      add_matrix(pointer<const T>(weights), is_last ? parameters : 1);
      T* copy = memory_.emplace_back().reserve(rows);
      std::copy_n(pointer<const T>(bias), rows, copy);
      biases_.push_back(copy);
      add_width(rows);
    }
    const auto matrices = static_cast<int64_t>(layers.size());
    const int64_t inner = ((int64_t{1} << matrices) - 1) & ~int64_t{1};  // all but the first
    network_ = {.dim = width_[0],
                .parameters = parameters,
                .matrices = matrices,
                .blocks = schedule_.blocks(),
                .width = width_.data(),
                .offset = offset_.data(),
                .order = order_.data(),
                .end = end_.data(),
                .block_step = schedule_.block_step.data(),
                .packed_offset = packed_offset_.data(),
                .weights = weights_.data(),
                .biases = biases_.data(),
                .bias_stride = bias_stride_.data(),
                .input_gates = no_gates_.data(),
                .output_gates = no_gates_.data(),
                .activated = residual ? inner >> 1 & inner : inner,
                .skips = residual ? inner >> 1 & kEvenBits & inner : 0,
                .packed = memory_.emplace_back().reserve(packed_size_),
                .activation = kActivations.at(activation),
                .transform = transform};
    GENSSL_DISPATCH(made_inverse_pack<T>)(network_, 0, network_.matrices * network_.blocks);
    network_.weights = nullptr;
  }
  PackedMADE(const PackedMADE&) = delete;

  const MADENetwork<T>* view() const { return &network_; }

 private:
  static constexpr int64_t kEvenBits = 0x5555555555555555;

  // A layer of units.
  void add_width(int64_t units) {
    const size_t layer = width_.size();
    width_.push_back(units);
    offset_.push_back(offset_.back() + units);
    order_.push_back(schedule_.order[layer].data());
    end_.push_back(schedule_.end[layer].data());
  }

  // `group`: rows of each of the units that the matrix leads to.
  void add_matrix(const T* weights, int64_t group) {
    const size_t layer = weights_.size();
    const auto &columns = schedule_.end[layer], &units = schedule_.end[layer + 1];
    weights_.push_back(weights);
    no_gates_.push_back(nullptr);
    for (int64_t block = 0; block < schedule_.blocks(); ++block) {
      const int64_t first = schedule_.block_step[block], last = schedule_.block_step[block + 1];
      packed_offset_.push_back(packed_size_);
      packed_size_ += (units[last] - units[first]) * group * columns[last];
    }
  }

  MADESchedule schedule_;
  std::vector<AlignedBuffer<T>> memory_;
  std::vector<const T*> weights_, biases_, no_gates_;
  std::vector<const int64_t*> order_, end_;
  std::vector<int64_t> width_, offset_{0}, bias_stride_, packed_offset_;
  int64_t packed_size_ = 0;
  MADENetwork<T> network_{};
};

}  // namespace genssl
