// Products of vectors rounded to 16-bit integers: twice as many as fused multiply-adds of fp32, by
// instructions that every x86-64 has, and exact, so that the rounding of the vectors bounds their
// error.
//
// A vector v becomes s q with integers q and |q| <= 46000, so that no product of two leaves 32
// bits (Cauchy-Schwarz). Two neighbouring integers share a lane: a panel of codes is stored as
// [pairs][kPanelColumns] lanes.
#pragma once

#include "kernels/common/lanes.h"
#include "kernels/common/matmul.h"

namespace genssl::GENSSL_ISA {

constexpr float kLongest = 46000, kLargest = 32767;

GENSSL_INLINE int64_t count_pairs(int64_t depth) { return (depth + 1) / 2; }

// s for vectors of at most this length and this largest magnitude; 0 for zeros.
GENSSL_INLINE float integer_scale(float length, float largest, int64_t depth) {
  const float rounding = float(__builtin_sqrt(double(depth))) / 2;  // of a vector, at most
  const float by_length = length / (kLongest - rounding), by_value = largest / kLargest;
  return by_length > by_value ? by_length : by_value;
}

GENSSL_INLINE Vec<float> round_to_integers(Vec<float> values, float inverse_scale) {
  return round(values * Vec<float>(inverse_scale));
}

GENSSL_INLINE Int32 to_integers(Vec<float> rounded) {
  return __builtin_convertvector(rounded.value, Int32);
}

// target[k] = round(source[k] / scale) for k < depth, then a zero where that is odd. Returns
// |source - scale target|^2.
inline float quantize_row(const float* source, int64_t depth, float scale, int16_t* target) {
  typedef int16_t Int16 __attribute__((vector_size(kVecBytes / 2)));
  constexpr int size = Vec<float>::size;
  const float inverse = scale > 0 ? 1 / scale : 0;
  Vec<float> squares(0.0f);
  for (int64_t k = 0; k < depth; k += size) {
    const int count = depth - k < size ? static_cast<int>(depth - k) : size;
    const Vec<float> value = Vec<float>::load(source + k, count);
    const Vec<float> rounded = round_to_integers(value, inverse);
    const Vec<float> rest = fma(Vec<float>(-scale), rounded, value);
    squares = fma(rest, rest, squares);
    const Int16 integers = __builtin_convertvector(to_integers(rounded), Int16);
    memcpy(target + k, &integers, sizeof integers);
  }
  return sum_of_lanes(squares);
}

// The same for a panel [depth][kPanelColumns] of codes, to [pairs][kPanelColumns]; returns the
// largest square of its columns.
inline float quantize_panel(const float* panel, int64_t depth, float scale, int32_t* target) {
  constexpr int size = Vec<float>::size, width = kPanelColumns<float>;
  const float inverse = scale > 0 ? 1 / scale : 0;
  float largest = 0;
  for (int n = 0; n < width; n += size) {
    Vec<float> squares(0.0f);
    for (int64_t k = 0; k < depth; k += 2) {
      Int32 halves[2] = {};
      for (int64_t i = 0; i < 2 && k + i < depth; ++i) {
        const Vec<float> value = Vec<float>::load(panel + (k + i) * width + n);
        const Vec<float> rounded = round_to_integers(value, inverse);
        const Vec<float> rest = fma(Vec<float>(-scale), rounded, value);
        squares = fma(rest, rest, squares);
        halves[i] = to_integers(rounded);
      }
      const Int32 pair = (halves[0] & 0xffff) | (halves[1] << 16);
      memcpy(target + k / 2 * width + n, &pair, sizeof pair);
    }
    const float highest = highest_lane(squares);
    if (!(highest <= largest)) largest = highest;
  }
  return largest;
}

// The register tile of matmul.h in integers.
template <int ROWS>
GENSSL_INLINE void sum_integer_products(const int16_t* rows, int64_t stride, const int32_t* panel,
                                        int64_t pairs, Int32 (&sum)[ROWS][kPanelVecs]) {
  constexpr int size = Vec<float>::size, width = kPanelColumns<float>;
#pragma GCC unroll 12
  for (int r = 0; r < ROWS; ++r) {
#pragma GCC unroll 2
    for (int v = 0; v < kPanelVecs; ++v) sum[r][v] = Int32{};
  }
  for (int64_t k = 0; k < pairs; ++k) {
    Int32 weight[kPanelVecs];
    for (int v = 0; v < kPanelVecs; ++v) {
      memcpy(&weight[v], panel + k * width + v * size, sizeof weight[v]);
    }
#pragma GCC unroll 12
    for (int r = 0; r < ROWS; ++r) {
      int32_t pair;
      memcpy(&pair, rows + r * stride + 2 * k, sizeof pair);
      const Int32 activation = pair - Int32{};
#pragma GCC unroll 2
      for (int v = 0; v < kPanelVecs; ++v) sum[r][v] += multiply_pairs(activation, weight[v]);
    }
  }
}

}  // namespace genssl::GENSSL_ISA
