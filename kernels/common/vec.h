// Vec<T>: as many lanes of T as one register holds. The only place that knows an instruction set.
//
// Arithmetic uses the compiler's vector extension; fused multiply-add, square root, rounding and
// masked access, which it lacks, are written out. The baseline has no fused multiply-add: a product
// and a sum.
#pragma once

#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include "kernels/common/host_device.h"

#define GENSSL_INLINE inline __attribute__((always_inline))
// After the parameters of a lambda.
#define GENSSL_INLINE_LAMBDA __attribute__((always_inline))

namespace genssl::GENSSL_ISA {

#if defined(__AVX512F__)
constexpr int kVecBytes = 64;
#elif defined(__AVX2__)
constexpr int kVecBytes = 32;
#else
constexpr int kVecBytes = 16;
#endif

// One register of T, and of the integers that mark its lanes (all bits set where true).
template <class T>
struct Register;
template <>
struct Register<float> {
  typedef float Native __attribute__((vector_size(kVecBytes)));
  typedef int32_t Mask __attribute__((vector_size(kVecBytes)));
};
template <>
struct Register<double> {
  typedef double Native __attribute__((vector_size(kVecBytes)));
  typedef int64_t Mask __attribute__((vector_size(kVecBytes)));
};

template <class T>
struct Vec {
  static constexpr int size = kVecBytes / static_cast<int>(sizeof(T));
  using Native = typename Register<T>::Native;
  using Mask = typename Register<T>::Mask;

  Native value;

  GENSSL_INLINE Vec() = default;
  GENSSL_INLINE Vec(Native native) : value(native) {}
  GENSSL_INLINE Vec(T scalar) : value(scalar - Native{}) {}

  static GENSSL_INLINE Vec load(const T* source) {
    Vec result;
    memcpy(&result.value, source, sizeof result.value);
    return result;
  }
  // The first `count` lanes; the others are 0. Nothing past them is read.
  static GENSSL_INLINE Vec load(const T* source, int count);
  GENSSL_INLINE void store(T* target) const { memcpy(target, &value, sizeof value); }
  // The first `count` lanes. Nothing past them is written.
  GENSSL_INLINE void store(T* target, int count) const;

  GENSSL_INLINE T operator[](int lane) const { return value[lane]; }
  friend GENSSL_INLINE Vec operator+(Vec a, Vec b) { return a.value + b.value; }
  friend GENSSL_INLINE Vec operator-(Vec a, Vec b) { return a.value - b.value; }
  friend GENSSL_INLINE Vec operator*(Vec a, Vec b) { return a.value * b.value; }
  friend GENSSL_INLINE Vec operator/(Vec a, Vec b) { return a.value / b.value; }
  friend GENSSL_INLINE Vec operator-(Vec a) { return -a.value; }
  friend GENSSL_INLINE Mask operator<(Vec a, Vec b) { return a.value < b.value; }
  friend GENSSL_INLINE Mask operator<=(Vec a, Vec b) { return a.value <= b.value; }
  friend GENSSL_INLINE Mask operator>(Vec a, Vec b) { return a.value > b.value; }
  friend GENSSL_INLINE Mask operator>=(Vec a, Vec b) { return a.value >= b.value; }
  friend GENSSL_INLINE Mask operator==(Vec a, Vec b) { return a.value == b.value; }
};

// Past the caches, to a target aligned to kVecBytes; followed by finish_streaming() before others
// read it.
GENSSL_INLINE void store_streaming(Vec<float> a, float* target);
GENSSL_INLINE void store_streaming(Vec<double> a, double* target);
GENSSL_INLINE void finish_streaming() {
#if defined(__x86_64__)
  _mm_sfence();
#endif
}

template <class T>
GENSSL_INLINE Vec<T> select(typename Vec<T>::Mask mask, Vec<T> yes, Vec<T> no) {
  return mask ? yes.value : no.value;
}

// Like torch.clamp: a NaN in `a` stays.
template <class T>
GENSSL_INLINE Vec<T> min(Vec<T> a, Vec<T> b) {
  return select(b < a, b, a);
}
template <class T>
GENSSL_INLINE Vec<T> max(Vec<T> a, Vec<T> b) {
  return select(b > a, b, a);
}
template <class T>
GENSSL_INLINE Vec<T> abs(Vec<T> a) {
  return select(a < Vec<T>(T(0)), -a, a);
}

// Lanes of 32-bit integers, or of two 16-bit integers each; as many as Vec<float> has.
typedef Register<float>::Mask Int32;

#if defined(__AVX512F__)

// For every lane the sum of the products of its 16-bit halves.
GENSSL_INLINE Int32 multiply_pairs(Int32 a, Int32 b) {
  return (Int32)_mm512_madd_epi16((__m512i)a, (__m512i)b);
}
GENSSL_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return Vec<float>(_mm512_fmadd_ps(a.value, b.value, c.value));
}
GENSSL_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return Vec<double>(_mm512_fmadd_pd(a.value, b.value, c.value));
}
// Overloads of the templates above: the compiler turns those into a comparison and a blend.
GENSSL_INLINE Vec<float> min(Vec<float> a, Vec<float> b) {
  return Vec<float>(_mm512_min_ps(b.value, a.value));
}
GENSSL_INLINE Vec<float> max(Vec<float> a, Vec<float> b) {
  return Vec<float>(_mm512_max_ps(b.value, a.value));
}
GENSSL_INLINE Vec<float> sqrt(Vec<float> a) { return Vec<float>(_mm512_sqrt_ps(a.value)); }
GENSSL_INLINE Vec<double> sqrt(Vec<double> a) { return Vec<double>(_mm512_sqrt_pd(a.value)); }
GENSSL_INLINE Vec<float> round(Vec<float> a) {
  return Vec<float>(_mm512_roundscale_ps(a.value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
GENSSL_INLINE Vec<double> round(Vec<double> a) {
  return Vec<double>(_mm512_roundscale_pd(a.value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
template <>
GENSSL_INLINE Vec<float> Vec<float>::load(const float* source, int count) {
  return Vec<float>(_mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << count) - 1), source));
}
template <>
GENSSL_INLINE Vec<double> Vec<double>::load(const double* source, int count) {
  return Vec<double>(_mm512_maskz_loadu_pd(static_cast<__mmask8>((1u << count) - 1), source));
}
template <>
GENSSL_INLINE void Vec<float>::store(float* target, int count) const {
  _mm512_mask_storeu_ps(target, static_cast<__mmask16>((1u << count) - 1), value);
}
template <>
GENSSL_INLINE void Vec<double>::store(double* target, int count) const {
  _mm512_mask_storeu_pd(target, static_cast<__mmask8>((1u << count) - 1), value);
}
GENSSL_INLINE void store_streaming(Vec<float> a, float* target) {
  _mm512_stream_ps(target, a.value);
}
GENSSL_INLINE void store_streaming(Vec<double> a, double* target) {
  _mm512_stream_pd(target, a.value);
}
GENSSL_INLINE bool all(Register<float>::Mask mask) {
  return _mm512_movepi32_mask((__m512i)mask) == 0xffff;
}

#elif defined(__AVX2__)

GENSSL_INLINE Int32 multiply_pairs(Int32 a, Int32 b) {
  return (Int32)_mm256_madd_epi16((__m256i)a, (__m256i)b);
}
GENSSL_INLINE Vec<float> fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  return Vec<float>(_mm256_fmadd_ps(a.value, b.value, c.value));
}
GENSSL_INLINE Vec<double> fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  return Vec<double>(_mm256_fmadd_pd(a.value, b.value, c.value));
}
// Overloads of the templates above: the compiler turns those into a comparison and a blend.
GENSSL_INLINE Vec<float> min(Vec<float> a, Vec<float> b) {
  return Vec<float>(_mm256_min_ps(b.value, a.value));
}
GENSSL_INLINE Vec<float> max(Vec<float> a, Vec<float> b) {
  return Vec<float>(_mm256_max_ps(b.value, a.value));
}
GENSSL_INLINE Vec<float> sqrt(Vec<float> a) { return Vec<float>(_mm256_sqrt_ps(a.value)); }
GENSSL_INLINE Vec<double> sqrt(Vec<double> a) { return Vec<double>(_mm256_sqrt_pd(a.value)); }
GENSSL_INLINE Vec<float> round(Vec<float> a) {
  return Vec<float>(_mm256_round_ps(a.value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
GENSSL_INLINE Vec<double> round(Vec<double> a) {
  return Vec<double>(_mm256_round_pd(a.value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}

GENSSL_INLINE __m256i first_lanes32(int count) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(count), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
GENSSL_INLINE __m256i first_lanes64(int count) {
  return _mm256_cmpgt_epi64(_mm256_set1_epi64x(count), _mm256_setr_epi64x(0, 1, 2, 3));
}
template <>
GENSSL_INLINE Vec<float> Vec<float>::load(const float* source, int count) {
  return Vec<float>(_mm256_maskload_ps(source, first_lanes32(count)));
}
template <>
GENSSL_INLINE Vec<double> Vec<double>::load(const double* source, int count) {
  return Vec<double>(_mm256_maskload_pd(source, first_lanes64(count)));
}
template <>
GENSSL_INLINE void Vec<float>::store(float* target, int count) const {
  _mm256_maskstore_ps(target, first_lanes32(count), value);
}
template <>
GENSSL_INLINE void Vec<double>::store(double* target, int count) const {
  _mm256_maskstore_pd(target, first_lanes64(count), value);
}
GENSSL_INLINE void store_streaming(Vec<float> a, float* target) {
  _mm256_stream_ps(target, a.value);
}
GENSSL_INLINE void store_streaming(Vec<double> a, double* target) {
  _mm256_stream_pd(target, a.value);
}
GENSSL_INLINE bool all(Register<float>::Mask mask) {
  return _mm256_movemask_ps((__m256)mask) == 0xff;
}

#else

GENSSL_INLINE Int32 multiply_pairs(Int32 a, Int32 b) {
#if defined(__x86_64__)
  return (Int32)_mm_madd_epi16((__m128i)a, (__m128i)b);
#else
  return (a << 16 >> 16) * (b << 16 >> 16) + (a >> 16) * (b >> 16);
#endif
}
template <class T>
GENSSL_INLINE Vec<T> fma(Vec<T> a, Vec<T> b, Vec<T> c) {
  return a * b + c;
}
template <class T>
GENSSL_INLINE Vec<T> sqrt(Vec<T> a) {
  for (int lane = 0; lane < Vec<T>::size; ++lane) {
    a.value[lane] = sizeof(T) == 4 ? T(__builtin_sqrtf(float(a.value[lane])))
                                   : T(__builtin_sqrt(a.value[lane]));
  }
  return a;
}
template <class T>
GENSSL_INLINE Vec<T> round(Vec<T> a) {
  for (int lane = 0; lane < Vec<T>::size; ++lane) a.value[lane] = T(::rint(a.value[lane]));
  return a;
}
template <class T>
GENSSL_INLINE Vec<T> Vec<T>::load(const T* source, int count) {
  Vec result(T(0));
  for (int lane = 0; lane < count; ++lane) result.value[lane] = source[lane];
  return result;
}
template <class T>
GENSSL_INLINE void Vec<T>::store(T* target, int count) const {
  for (int lane = 0; lane < count; ++lane) target[lane] = value[lane];
}
// Rounded once, where what rounding leaves is wanted.
GENSSL_INLINE Vec<float> exact_fma(Vec<float> a, Vec<float> b, Vec<float> c) {
  for (int lane = 0; lane < Vec<float>::size; ++lane) {
    c.value[lane] = float(double(a[lane]) * double(b[lane]) + double(c[lane]));
  }
  return c;
}
GENSSL_INLINE Vec<double> exact_fma(Vec<double> a, Vec<double> b, Vec<double> c) {
  for (int lane = 0; lane < Vec<double>::size; ++lane) {
    c.value[lane] = ::fma(a[lane], b[lane], c[lane]);
  }
  return c;
}
GENSSL_INLINE void store_streaming(Vec<float> a, float* target) { a.store(target); }
GENSSL_INLINE void store_streaming(Vec<double> a, double* target) { a.store(target); }
GENSSL_INLINE bool all(Register<float>::Mask mask) {
  bool result = true;
  for (int lane = 0; lane < Vec<float>::size; ++lane) result = result && mask[lane];
  return result;
}

#endif

#if defined(__AVX2__)
template <class T>
GENSSL_INLINE Vec<T> exact_fma(Vec<T> a, Vec<T> b, Vec<T> c) {
  return fma(a, b, c);
}
#endif

}  // namespace genssl::GENSSL_ISA
