// Networks of a flow for a block of samples: what they read is gathered from the state, what they
// give lies in scratch.outputs.
#pragma once

#include "kernels/common/activation_vec.h"
#include "kernels/coupling/flow_scratch.h"

namespace genssl::GENSSL_ISA {

// One layer of a network for a block of rows. Arrays of rows lie `stride` apart.
template <class T>
struct RowsOfLayer {
  const Matrix<T>& matrix;
  const T* bias;
  int64_t rows, stride;
};

// target = act(source W^T + b).
template <Activation activation, class T>
inline void activated_layer(const RowsOfLayer<T>& layer, const T* source, T* target) {
  for_each_sum<T>(source, layer.stride, layer.rows, layer.matrix, layer.bias, nullptr,
                  [&](int64_t r, int64_t n, int64_t, Vec<T> sum) {
                    activate<activation>(sum).store(target + r * layer.stride + n);
                  });
}

// hidden <- source W^T + b, or that added to it; target = act(hidden).
template <Activation activation, bool add, class T>
inline void residual_layer(const RowsOfLayer<T>& layer, const T* source, T* hidden, T* target) {
  for_each_sum<T>(source, layer.stride, layer.rows, layer.matrix, layer.bias, nullptr,
                  [&](int64_t r, int64_t n, int64_t, Vec<T> sum) {
                    T* kept = hidden + r * layer.stride + n;
                    if (add) sum = Vec<T>::load(kept) + sum;
                    sum.store(kept);
                    activate<activation>(sum).store(target + r * layer.stride + n);
                  });
}

// All layers but the last, of rows that lie in scratch.input; returns what the last one reads.
template <Activation activation, class T>
inline const T* hidden_layers(const Perceptron<T>& network, int64_t rows, FlowScratch<T>& scratch) {
  const auto layer = [&](int64_t i) {
    return RowsOfLayer<T>{network.matrices[i], network.biases[i], rows, scratch.stride};
  };
  const int64_t last = network.num_layers - 1;
  if (last == 0) return scratch.input;
  if (!network.residual) {
    const T* source = scratch.input;
    T *target = scratch.activations, *other = scratch.next;
    for (int64_t i = 0; i < last; ++i) {
      activated_layer<activation>(layer(i), source, target);
      source = target;
      target = other;
      other = const_cast<T*>(source);
    }
    return source;
  }
  T *hidden = scratch.hidden, *activations = scratch.activations, *next = scratch.next;
  residual_layer<activation, false>(layer(0), scratch.input, hidden, activations);
  for (int64_t i = 1; i < last; i += 2) {
    activated_layer<activation>(layer(i), activations, next);
    residual_layer<activation, true>(layer(i + 1), next, hidden, activations);
  }
  return hidden;
}

// scratch.outputs = network(scratch.input).
template <class T>
inline void run_network(const Perceptron<T>& network, int64_t rows, FlowScratch<T>& scratch) {
  const T* source = nullptr;
  with_activation(network.activation, [&]<Activation activation>() {
    source = hidden_layers<activation>(network, rows, scratch);
  });
  const int64_t last = network.num_layers - 1;
  linear<T>(source, scratch.stride, rows, network.matrices[last], network.biases[last],
            scratch.outputs, scratch.output_stride, nullptr);
}

template <class T>
GENSSL_INLINE void copy_context(const FlowPlanArgs<T>& args, int64_t features, int64_t sample,
                                T* target) {
  if (features == 0) return;
  memcpy(target, args.context + sample * args.context_stride, features * sizeof(T));
}

// target = columns of the state.
template <class T>
GENSSL_INLINE void gather(const FlowColumns& columns, const T* state, T* target) {
  if (columns.run == 1) {
    for (int64_t i = 0; i < columns.count; ++i) target[i] = state[columns.index[i]];
    return;
  }
  for (int64_t i = 0; i < columns.count; i += columns.run) {
    copy_lanes(state + columns.index[i], columns.run, target + i);
  }
}
template <class T>
GENSSL_INLINE void scatter(const T* source, const FlowColumns& columns, T* state) {
  if (columns.run == 1) {
    for (int64_t i = 0; i < columns.count; ++i) state[columns.index[i]] = source[i];
    return;
  }
  for (int64_t i = 0; i < columns.count; i += columns.run) {
    copy_lanes(source + i, columns.run, state + columns.index[i]);
  }
}

// The layer's columns of the state, then the context.
template <class T>
inline void gather_inputs(const FlowPlanArgs<T>& args, const FlowLayer<T>& layer, int64_t first,
                          int64_t rows, FlowScratch<T>& scratch) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* state = scratch.state + r * args.dim;
    T* input = scratch.input + r * scratch.stride;
    gather(layer.inputs, state, input);
    copy_context(args, layer.context_features, first + r, input + layer.inputs.count);
  }
}

// scratch.context[rows, units] = the context's network.
template <class T>
inline void run_context(const FlowPlanArgs<T>& args, const FlowLayer<T>& layer, int64_t first,
                        int64_t rows, FlowScratch<T>& scratch) {
  const Perceptron<T>& network = layer.context_network;
  for (int64_t r = 0; r < rows; ++r) {
    copy_context(args, layer.context_features, first + r, scratch.input + r * scratch.stride);
  }
  linear<T>(scratch.input, scratch.stride, rows, network.matrices[0], network.biases[0],
            scratch.context, network.matrices[0].columns, nullptr);
}

// The columns of a row of pixels.
GENSSL_INLINE FlowColumns row_of(const FlowColumns& columns, int64_t row, int64_t width) {
  return {columns.index + row * width, width, columns.run % width == 0 ? width : 1};
}

// The convolutions of the layer's columns of the state.
template <class T>
inline ConvNetRun<T> run_convolutions(const FlowPlanArgs<T>& args, const FlowLayer<T>& layer,
                                      const ConvNet<T>& network, int64_t first, int64_t rows,
                                      FlowScratch<T>& scratch) {
  ConvNetRun<T> run(network, rows, scratch.layer);
  run.for_each_row(network.layers[0].in, [&](T* row, int64_t image, int64_t c, int64_t y) {
    gather(row_of(layer.inputs, c * network.height + y, network.width),
           scratch.state + image * args.dim, row);
  });
  if (layer.context_features > 0) run_context(args, layer, first, rows, scratch);
  run.run(layer.context_features > 0 ? scratch.context : nullptr);
  return run;
}

// scratch.outputs = convolutions.
template <class T>
inline void convolve_outputs(const FlowPlanArgs<T>& args, const FlowLayer<T>& layer, int64_t first,
                             int64_t rows, FlowScratch<T>& scratch) {
  const ConvNet<T>& network = *layer.convolutions;
  const int64_t height = network.height, width = network.width;
  run_convolutions(args, layer, network, first, rows, scratch)
      .for_each_row(network.layers[network.num_layers - 1].out,
                    [&](const T* row, int64_t image, int64_t c, int64_t y) {
                      T* target = scratch.outputs + image * scratch.output_stride;
                      copy_lanes(row, width, target + (c * height + y) * width);
                    });
}

}  // namespace genssl::GENSSL_ISA
