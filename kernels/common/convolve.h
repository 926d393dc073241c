// Convolutions of padded images, as tiles held in registers.
//
//   y[o, p] = b[o] + sum_{i, t} K[o, i, t] x[i, p + offset_t],  p over all positions of all images
//
// A tile is kTileRows output channels by two registers of neighbouring positions: a step of the
// loop loads two registers of pixels and broadcasts one weight a channel. So few channels leave no
// lanes unused. Images lie one after the other, with zeros behind each row and each image, which
// are also what lies before the next. Where rows fill pairs of registers, pixels alone are
// computed; else all positions are, so that narrow images leave no lanes unused, and padding is
// stored as zeros.
//
// Every sum is one chain of fused multiply-adds over (i, t) ascending that starts at 0: a pixel has
// the same bits wherever its image lies in the batch.
//
// Measured on one core with AVX-512 (limit 115 GFLOP/s), one image of 32 x 32, padding not counted:
//   3x3 of 6 to 64, 1x1 of 64 to 64, 3x3 of 64 to 12 channels, sums stored and read again
//                                                             92, 94, 107 GFLOP/s
//   bias, ReLU and padding while sums are in registers       102, 103, 108
//   rows alone                                               3 % less time for the three
#pragma once

#include "kernels/common/convolution.h"
#include "kernels/common/linear.h"

namespace genssl::GENSSL_ISA {

// `count` padded images, a channel after the other: where a channel's first pixel lies is aligned.
template <class T>
struct Images {
  int64_t height, width, pad, count;

  GENSSL_INLINE int64_t row() const { return width + pad; }
  GENSSL_INLINE int64_t image() const { return (height + pad) * row(); }
  GENSSL_INLINE int64_t positions() const { return count * image(); }
  // Before the first pixel, at least as far as a kernel reaches.
  GENSSL_INLINE int64_t margin() const {
    return divide_up(pad * row() + pad, Vec<T>::size) * Vec<T>::size;
  }
  // An odd number of registers: a power of two would send all channels to the same cache sets.
  GENSSL_INLINE int64_t stride() const {
    const int64_t pairs = divide_up(positions(), 2 * Vec<T>::size);
    return 2 * margin() + (2 * pairs + 1) * Vec<T>::size;
  }
};

// Offsets of a kernel's taps from the position it computes.
struct Taps {
  int64_t offset[kMaxKernelSide * kMaxKernelSide];
  int count;

  GENSSL_INLINE Taps(int64_t row, int64_t side) : count(static_cast<int>(side * side)) {
    for (int64_t i = 0; i < side * side; ++i) {
      offset[i] = (i / side - side / 2) * row + (i % side - side / 2);
    }
  }
};

// Output channels of the next tile: of 13 to 16 half, since a tile of few channels loads a register
// for every two multiplications.
GENSSL_INLINE int next_tile_channels(int64_t left) {
  if (kTileRows > 8 && left > kTileRows && left <= 16) return 8;
  return next_tile_rows(left);
}

// packed: for each tile of output channels [in][taps][channels of the tile].
template <class T>
inline void pack_kernels(const T* weights, int64_t out, int64_t depth, T* packed) {
  for (int64_t first = 0; first < out;) {
    const int channels = next_tile_channels(out - first);
    for (int64_t k = 0; k < depth; ++k) {
      for (int c = 0; c < channels; ++c) *packed++ = weights[(first + c) * depth + k];
    }
    first += channels;
  }
}

// Which of a channel's positions are pixels: lanes of ones or zeros.
template <class T>
using PixelMask = decltype(typename Vec<T>::Mask{}[0] + 0);

template <class T>
inline void mark_pixels(const Images<T>& images, PixelMask<T>* pixels) {
  memset(pixels, 0, images.stride() * sizeof pixels[0]);
  for (int64_t i = 0; i < images.count; ++i) {
    for (int64_t y = 0; y < images.height; ++y) {
      PixelMask<T>* first = pixels + i * images.image() + y * images.row();
      for (int64_t x = 0; x < images.width; ++x) first[x] = -1;
    }
  }
}

// The value at pixels, and zero elsewhere.
template <class T>
GENSSL_INLINE Vec<T> at_pixels(const PixelMask<T>* pixels, Vec<T> value) {
  typename Vec<T>::Mask mask;
  memcpy(&mask, pixels, sizeof mask);
  return Vec<T>((typename Vec<T>::Native)((typename Vec<T>::Mask)value.value & mask));
}

// What a layer reads and writes: channels [stride] from their first pixel on.
template <class T>
struct LayerOfImages {
  const Images<T>& images;
  const Convolution<T>& convolution;
  const Taps& taps;
  const T* source;
  T* target;
  const PixelMask<T>* pixels;
  bool relu;
};

// CHANNELS output channels from `first` on at VECS registers of positions from `position` on.
template <class T, int CHANNELS, int VECS>
__attribute__((noinline)) void convolve_tile(const LayerOfImages<T>& layer, int64_t first,
                                             int64_t position) {
  constexpr int size = Vec<T>::size;
  const int64_t stride = layer.images.stride(), depth = layer.convolution.in * layer.taps.count;
  const T* weights = layer.convolution.packed + first * depth;
  const T* source = layer.source + position;
  Vec<T> sum[CHANNELS][VECS];
  for (int c = 0; c < CHANNELS; ++c) {
    for (int v = 0; v < VECS; ++v) sum[c][v] = Vec<T>(T(0));
  }
  for (int64_t i = 0; i < layer.convolution.in; ++i, source += stride) {
    for (int t = 0; t < layer.taps.count; ++t, weights += CHANNELS) {
      Vec<T> x[VECS];
      for (int v = 0; v < VECS; ++v) x[v] = Vec<T>::load(source + layer.taps.offset[t] + v * size);
      for (int c = 0; c < CHANNELS; ++c) {
        const Vec<T> weight(weights[c]);
        for (int v = 0; v < VECS; ++v) sum[c][v] = fma(weight, x[v], sum[c][v]);
      }
    }
  }
#pragma GCC unroll 12
  for (int c = 0; c < CHANNELS; ++c) {
    const Vec<T> bias(layer.convolution.bias[first + c]), zero(T(0));
    T* target = layer.target + (first + c) * stride + position;
#pragma GCC unroll 2
    for (int v = 0; v < VECS; ++v) {
      const Vec<T> value = sum[c][v] + bias;
      at_pixels(layer.pixels + position + v * size, layer.relu ? max(value, zero) : value)
          .store(target + v * size);
    }
  }
}

template <class T, int VECS>
GENSSL_INLINE void convolve_channels(int channels, const LayerOfImages<T>& layer, int64_t first,
                                     int64_t position) {
  constexpr int eight = kTileRows < 8 ? kTileRows : 8;
  switch (channels) {
    case 1:
      return convolve_tile<T, 1, VECS>(layer, first, position);
    case 2:
      return convolve_tile<T, 2, VECS>(layer, first, position);
    case 3:
      return convolve_tile<T, 3, VECS>(layer, first, position);
    case 4:
      return convolve_tile<T, 4, VECS>(layer, first, position);
    case 8:
      return convolve_tile<T, eight, VECS>(layer, first, position);
    default:
      return convolve_tile<T, kTileRows, VECS>(layer, first, position);
  }
}

// All channels at two registers of positions, or at the one that is left.
template <class T>
GENSSL_INLINE void convolve_at(const LayerOfImages<T>& layer, int64_t position, bool both) {
  const int64_t out = layer.convolution.out;
  for (int64_t first = 0; first < out;) {
    const int channels = next_tile_channels(out - first);
    (both ? convolve_channels<T, 2> : convolve_channels<T, 1>)(channels, layer, first, position);
    first += channels;
  }
}

// All pixels: row by row where rows fill pairs of registers, else all positions; what is read past
// the last position does not reach a pixel.
template <class T>
inline void convolve(const LayerOfImages<T>& layer) {
  constexpr int64_t pair = 2 * Vec<T>::size;
  const Images<T>& images = layer.images;
  if (images.width % pair == 0) {
    for (int64_t y = 0; y < images.count * images.height; ++y) {
      const int64_t row = y / images.height * images.image() + y % images.height * images.row();
      for (int64_t x = 0; x < images.width; x += pair) convolve_at(layer, row + x, true);
    }
    return;
  }
  for (int64_t position = 0; position < images.positions(); position += pair) {
    convolve_at(layer, position, images.positions() - position > Vec<T>::size);
  }
}

}  // namespace genssl::GENSSL_ISA
