// Scratch memory of a flow's block of samples.
#pragma once

#include "kernels/common/linear.h"
#include "kernels/coupling/conv_net.h"
#include "kernels/coupling/flow_plan.h"

namespace genssl::GENSSL_ISA {

template <class T>
GENSSL_INLINE int64_t num_outputs(const ConvNet<T>& network) {
  return network.layers[network.num_layers - 1].out * network.height * network.width;
}

template <class T>
GENSSL_INLINE int64_t parameters_per_element(const FlowLayer<T>& layer) {
  if (layer.kind == FlowLayerKind::spline) return num_parameters(layer.spline);
  if (const ConvNet<T>* network = layer.convolutions) {
    return num_outputs(*network) / layer.outputs.count;
  }
  return layer.network.matrices[layer.network.num_layers - 1].columns / layer.outputs.count;
}

// The widest rows that the flow's networks read and keep, and those that they write; samples whose
// images fit the cache together.
template <class T>
struct FlowWidths {
  int64_t activations = 1, outputs = 1, images = kMaxBlockRows;

  GENSSL_INLINE explicit FlowWidths(const FlowPlanArgs<T>& args) {
    for (int64_t i = 0; i < args.num_layers; ++i) {
      include(args.layers[i].network);
      include(args.layers[i].inverse_network);
      include(args.layers[i].context_network);
      include(args.layers[i].convolutions);
      include(args.layers[i].inverse_convolutions);
    }
  }
  GENSSL_INLINE void include(const Perceptron<T>& network) {
    for (int64_t i = 0; i < network.num_layers; ++i) {
      activations = larger(activations, network.matrices[i].depth);
    }
    if (network.num_layers == 0) return;
    outputs = larger(outputs, network.matrices[network.num_layers - 1].columns);
  }
  GENSSL_INLINE void include(const ConvNet<T>* network) {
    if (network == nullptr) return;
    outputs = larger(outputs, num_outputs(*network));
    images = smaller(images, images_at_a_time(*network));
  }
  // Rows of a block of so many samples.
  GENSSL_INLINE int64_t rows(int64_t samples) const {
    return smaller(block_rows<T>(activations, samples), images);
  }
};

// Scratch memory of one thread for blocks of `rows` samples, cut into its parts.
template <class T>
struct FlowScratch {
  T *state, *input, *hidden, *activations, *next, *outputs, *log_derivatives, *context, *layer;
  float* noise;
  int64_t stride, output_stride, size;

  GENSSL_INLINE FlowScratch(const FlowPlanArgs<T>& args, const FlowWidths<T>& widths, int64_t rows,
                            T* workspace) {
    const int64_t state_size = cut(rows * args.dim + Vec<T>::size);
    stride = row_stride<T>(widths.activations);
    output_stride = row_stride<T>(widths.outputs);
    state = workspace;
    log_derivatives = state + state_size;
    noise = reinterpret_cast<float*>(log_derivatives + state_size);
    input = log_derivatives + 2 * state_size;
    hidden = input + rows * stride;
    activations = hidden + rows * stride;
    next = activations + rows * stride;
    outputs = next + rows * stride;
    context = outputs + rows * output_stride;
    layer = context + rows * output_stride;
    size = layer + layer_size(args, rows) - workspace;
  }
  // On a cache line.
  static int64_t cut(int64_t elements) { return divide_up(elements, Vec<T>::size) * Vec<T>::size; }
  // What single layers need beside.
  static int64_t layer_size(const FlowPlanArgs<T>& args, int64_t rows) {
    int64_t most = Vec<T>::size;
    for (int64_t i = 0; i < args.num_layers; ++i) {
      const FlowLayer<T>& layer = args.layers[i];
      if (layer.masked) most = larger(most, made_inverse_workspace(*layer.masked));
      const ConvNet<T>* const networks[] = {layer.convolutions, layer.inverse_convolutions};
      for (const ConvNet<T>* network : networks) {
        if (network) most = larger(most, conv_net_size(*network, rows));
      }
    }
    return most;
  }
};

}  // namespace genssl::GENSSL_ISA
