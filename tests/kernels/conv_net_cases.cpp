// Convolutions of images of many sizes in memory that holds nothing more, for the sanitizers; fails
// where images of ones do not become what they should.
#include <math.h>
#include <stdio.h>
#include <stdlib.h>

#include <initializer_list>
#include <vector>

#include "kernels/coupling/conv_net.h"

namespace {

using namespace genssl;
using namespace genssl::GENSSL_ISA;

// Kernels of 1 / (in * taps) and biases of 1, so that a pixel away from the border grows by 1 a
// layer.
template <class T>
class Network {
 public:
  Network(int height, int width, std::initializer_list<int> sides,
          std::initializer_list<int> channels) {
    const int* in = channels.begin();
    for (int side : sides) {
      const int out = in[1], depth = *in * side * side;
      const std::vector<T> weights(out * depth, T(1) / T(depth));
      memory_.emplace_back(out * depth);
      pack_kernels(weights.data(), out, depth, memory_.back().data());
      memory_.emplace_back(out, T(1));
      layers_.push_back(
          {memory_[memory_.size() - 2].data(), memory_.back().data(), out, *in, side});
      ++in;
    }
    network_ = {layers_.data(), int64_t(layers_.size()), height, width, Activation::leaky_relu};
  }

  // The largest value at a pixel of `count` images of ones; NaN where one is.
  double largest(int count, bool with_context) const {
    const int64_t bytes = conv_net_size(network_, count) * sizeof(T);
    T* workspace = static_cast<T*>(aligned_alloc(64, (bytes + 63) / 64 * 64));
    memset(workspace, 0xff, bytes);
    const std::vector<T> context(count * layers_[0].out, T(0));
    ConvNetRun<T> run(network_, count, workspace);
    run.for_each_row(layers_[0].in, [&](T* row, int64_t, int64_t, int64_t) {
      for (int64_t x = 0; x < network_.width; ++x) row[x] = T(1);
    });
    run.run(with_context ? context.data() : nullptr);
    double most = 0;
    run.for_each_row(layers_.back().out, [&](const T* row, int64_t, int64_t, int64_t) {
      for (int64_t x = 0; x < network_.width; ++x) {
        if (!(row[x] <= most)) most = double(row[x]);
      }
    });
    free(workspace);
    return most;
  }

  bool grows(int count, int reach) const {
    const double expected = 1.0 + double(layers_.size());
    const double found = largest(count, false), again = largest(count, true);
    const bool has_inside = network_.height > 2 * reach && network_.width > 2 * reach;
    const bool right = has_inside ? fabs(found - expected) < 1e-4 : found <= expected + 1e-4;
    return right && found == again;
  }

 private:
  std::vector<std::vector<T>> memory_;
  std::vector<Convolution<T>> layers_;
  ConvNet<T> network_{};
};

template <class T>
bool every_network_grows(int height, int width, int count) {
  return Network<T>(height, width, {3, 1, 3}, {3, 13, 9, 5}).grows(count, 2) &&
         Network<T>(height, width, {1}, {4, 4}).grows(count, 0) &&
         Network<T>(height, width, {7, 1, 5}, {2, 17, 3, 12}).grows(count, 5);
}

}  // namespace

int main() {
  for (int height : {1, 2, 3, 8, 17}) {
    for (int width : {1, 2, 5, 16, 32, 33, 64}) {
      for (int count : {1, 2, 7}) {
        if (every_network_grows<float>(height, width, count) &&
            every_network_grows<double>(height, width, count)) {
          continue;
        }
        printf("%d images of %d x %d\n", count, height, width);
        return 1;
      }
    }
  }
  return 0;
}
