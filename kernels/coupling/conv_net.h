// A convolutional network of a block of images, whose channels stay in the second level cache from
// layer to layer.
#pragma once

#include "kernels/common/activation_vec.h"
#include "kernels/common/convolve.h"

namespace genssl::GENSSL_ISA {

constexpr int64_t kImageBytes = 512 << 10;

template <class T>
GENSSL_INLINE Images<T> images_of(const ConvNet<T>& network, int64_t count) {
  int64_t side = 1;
  for (int64_t i = 0; i < network.num_layers; ++i) side = larger(side, network.layers[i].side);
  return {network.height, network.width, side / 2, count};
}

// Two arrays of channels, which layers read and write in turn, and the mask of pixels.
template <class T>
GENSSL_INLINE int64_t conv_net_channels(const ConvNet<T>& network) {
  int64_t most = 1;
  for (int64_t i = 0; i < network.num_layers; ++i) {
    most = larger(most, larger(network.layers[i].in, network.layers[i].out));
  }
  return most;
}
template <class T>
GENSSL_INLINE int64_t conv_net_size(const ConvNet<T>& network, int64_t count) {
  return (2 * conv_net_channels(network) + 1) * images_of(network, count).stride();
}

// Images of a block: as many as fit the cache.
template <class T>
GENSSL_INLINE int64_t images_at_a_time(const ConvNet<T>& network) {
  const int64_t bytes = 2 * conv_net_channels(network) * images_of(network, 1).image() * sizeof(T);
  return larger(1, kImageBytes / bytes);
}

template <class T>
class ConvNetRun {
 public:
  // workspace: conv_net_size elements, on a cache line.
  ConvNetRun(const ConvNet<T>& network, int64_t count, T* workspace)
      : network_(network), images_(images_of(network, count)), stride_(images_.stride()) {
    const int64_t array = conv_net_channels(network) * stride_;
    source_ = workspace + images_.margin();
    target_ = source_ + array;
    pixels_ = reinterpret_cast<PixelMask<T>*>(workspace + 2 * array);
    mark_pixels(images_, pixels_);
    clear_padding(source_, network.layers[0].in);
  }

  // Calls body(row, image, channel, y) for rows of the input, or, after run(), of the output.
  template <class Body>
  GENSSL_INLINE void for_each_row(int64_t channels, const Body& body) const {
    for (int64_t image = 0; image < images_.count; ++image) {
      for (int64_t c = 0; c < channels; ++c) {
        T* row = source_ + c * stride_ + image * images_.image();
        for (int64_t y = 0; y < images_.height; ++y, row += images_.row()) body(row, image, c, y);
      }
    }
  }

  // context: [count, channels of the first layer], added to its sums, or null.
  void run(const T* context) {
    for (int64_t i = 0; i < network_.num_layers; ++i) {
      const bool is_last = i + 1 == network_.num_layers, adds = i == 0 && context;
      const bool relu = !is_last && !adds && network_.activation == Activation::relu;
      const Convolution<T>& layer = network_.layers[i];
      clear_padding(target_, layer.out);
      const Taps taps(images_.row(), layer.side);
      convolve<T>({images_, layer, taps, source_, target_, pixels_, relu});
      if (!relu && (adds || !is_last)) finish(layer.out, adds ? context : nullptr, is_last);
      T* const read = source_;
      source_ = target_;
      target_ = read;
    }
  }

 private:
  void clear_padding(T* array, int64_t channels) const {
    const int64_t row = images_.row(), below = images_.height * row;
    for (int64_t c = 0; c < channels; ++c) {
      T* first = array + c * stride_;
      clear_lanes(first - images_.margin(), images_.margin());
      for (int64_t image = 0; image < images_.count; ++image, first += images_.image()) {
        for (int64_t y = 1; y <= images_.height; ++y) {
          for (int64_t x = 1; x <= images_.pad; ++x) first[y * row - x] = T(0);
        }
        clear_lanes(first + below, images_.image() - below);
      }
    }
  }

  // Adds the context to sums, and activates them.
  void finish(int64_t channels, const T* context, bool is_last) const {
    for (int64_t image = 0; image < images_.count; ++image) {
      for (int64_t c = 0; c < channels; ++c) {
        const Vec<T> added(context ? context[image * channels + c] : T(0));
        finish_image(image, c, added, is_last);
      }
    }
  }
  void finish_image(int64_t image, int64_t channel, Vec<T> added, bool is_last) const {
    const int64_t first = image * images_.image(), count = images_.image();
    T* sums = target_ + channel * stride_ + first;
    const auto each = [&](const auto& change) GENSSL_INLINE_LAMBDA {
      for (int64_t i = 0; i < count; i += Vec<T>::size) {
        const Vec<T> value = change(load_lanes(sums + i, count - i) + added);
        store_lanes(at_pixels(pixels_ + first + i, value), sums + i, count - i);
      }
    };
    if (is_last) return each([](Vec<T> value) GENSSL_INLINE_LAMBDA { return value; });
    with_activation(network_.activation, [&]<Activation activation>() {
      each([](Vec<T> value) GENSSL_INLINE_LAMBDA { return activate<activation>(value); });
    });
  }

  const ConvNet<T>& network_;
  Images<T> images_;
  int64_t stride_;
  T *source_, *target_;
  PixelMask<T>* pixels_;
};

}  // namespace genssl::GENSSL_ISA
