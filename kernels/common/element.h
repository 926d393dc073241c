// Elements as they lie in memory, and the lanes in which they are computed: double for double,
// float for the rest. Half-precision results are rounded to nearest even.
#pragma once

#include "kernels/common/element_type.h"
#include "kernels/common/vec.h"

namespace genssl::GENSSL_ISA {

struct BFloat16 {
  uint16_t bits;
};
struct Float16 {
  uint16_t bits;
};

template <class Element>
struct ComputeType {
  using type = float;
};
template <>
struct ComputeType<double> {
  using type = double;
};
template <class Element>
using Number = typename ComputeType<Element>::type;
template <class Element>
using Lanes = Vec<Number<Element>>;

// Calls body.template operator()<Element>() for elements that are computed in fp32.
template <class Body>
GENSSL_INLINE void with_float_element(ElementType type, const Body& body) {
  if (type == ElementType::float32) return body.template operator()<float>();
  if (type == ElementType::bfloat16) return body.template operator()<BFloat16>();
  body.template operator()<Float16>();
}
// The same for all elements.
template <class Body>
GENSSL_INLINE void with_element(ElementType type, const Body& body) {
  if (type == ElementType::float64) return body.template operator()<double>();
  with_float_element(type, body);
}

typedef uint16_t Bits16 __attribute__((vector_size(kVecBytes / 2)));
typedef uint32_t Bits32 __attribute__((vector_size(kVecBytes)));

GENSSL_INLINE Vec<float> widen(Bits16 bits, BFloat16) {
  return Vec<float>((Vec<float>::Native)(__builtin_convertvector(bits, Bits32) << 16));
}

// Adding half of the last kept bit, minus one where that bit is even, rounds to nearest even; a NaN
// stays one.
GENSSL_INLINE Bits16 narrow(Vec<float> a, BFloat16) {
  const Bits32 bits = (Bits32)a.value;
  const Bits32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
  const Bits32 quiet = (bits >> 16) | 0x40;
  return __builtin_convertvector((a == a) ? rounded : quiet, Bits16);
}

#if defined(__AVX512F__)
GENSSL_INLINE Vec<float> widen(Bits16 bits, Float16) {
  return Vec<float>(_mm512_cvtph_ps((__m256i)bits));
}
GENSSL_INLINE Bits16 narrow(Vec<float> a, Float16) {
  return (Bits16)_mm512_cvtps_ph(a.value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#elif defined(__AVX2__)
GENSSL_INLINE Vec<float> widen(Bits16 bits, Float16) {
  return Vec<float>(_mm256_cvtph_ps((__m128i)bits));
}
GENSSL_INLINE Bits16 narrow(Vec<float> a, Float16) {
  return (Bits16)_mm256_cvtps_ph(a.value, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
}
#else
GENSSL_INLINE Vec<float> widen(Bits16 bits, Float16) {
  Vec<float> result;
  for (int lane = 0; lane < Vec<float>::size; ++lane) {
    const uint16_t source = bits[lane];
    _Float16 half;
    memcpy(&half, &source, sizeof half);
    result.value[lane] = float(half);
  }
  return result;
}
GENSSL_INLINE Bits16 narrow(Vec<float> a, Float16) {
  Bits16 result;
  for (int lane = 0; lane < Vec<float>::size; ++lane) {
    const _Float16 half = _Float16(a[lane]);
    uint16_t target;
    memcpy(&target, &half, sizeof half);
    result[lane] = target;
  }
  return result;
}
#endif

// load(source[, count]) and store(value, target[, count]) for every element type; see Vec.
GENSSL_INLINE Vec<float> load(const float* source) { return Vec<float>::load(source); }
GENSSL_INLINE Vec<double> load(const double* source) { return Vec<double>::load(source); }
GENSSL_INLINE Vec<float> load(const float* source, int count) {
  return Vec<float>::load(source, count);
}
GENSSL_INLINE Vec<double> load(const double* source, int count) {
  return Vec<double>::load(source, count);
}
template <class Half>
GENSSL_INLINE Vec<float> load(const Half* source) {
  Bits16 bits;
  memcpy(&bits, source, sizeof bits);
  return widen(bits, Half{});
}
template <class Half>
GENSSL_INLINE Vec<float> load(const Half* source, int count) {
  Bits16 bits{};
  memcpy(&bits, source, count * sizeof(Half));
  return widen(bits, Half{});
}

GENSSL_INLINE void store(Vec<float> value, float* target) { value.store(target); }
GENSSL_INLINE void store(Vec<double> value, double* target) { value.store(target); }
GENSSL_INLINE void store(Vec<float> value, float* target, int count) { value.store(target, count); }
GENSSL_INLINE void store(Vec<double> value, double* target, int count) {
  value.store(target, count);
}
template <class Half>
GENSSL_INLINE void store(Vec<float> value, Half* target) {
  const Bits16 bits = narrow(value, Half{});
  memcpy(target, &bits, sizeof bits);
}
template <class Half>
GENSSL_INLINE void store(Vec<float> value, Half* target, int count) {
  const Bits16 bits = narrow(value, Half{});
  memcpy(target, &bits, count * sizeof(Half));
}

template <class Half>
GENSSL_INLINE void store_streaming(Vec<float> value, Half* target) {
  store(value, target);
}

// Lanes from floats in memory, which noise always is.
GENSSL_INLINE void load_floats(const float* source, Vec<float>& lanes) {
  lanes = Vec<float>::load(source);
}
GENSSL_INLINE void load_floats(const float* source, Vec<double>& lanes) {
  typedef float Half __attribute__((vector_size(kVecBytes / 2)));
  Half half;
  memcpy(&half, source, sizeof half);
  lanes = Vec<double>(__builtin_convertvector(half, Vec<double>::Native));
}

// A register's worth of consecutive elements of arrays of one type, whole or the first `count` of
// it.
template <class Element>
struct WholeRegister {
  int64_t index;

  GENSSL_INLINE Lanes<Element> read(const void* array) const {
    return load(static_cast<const Element*>(array) + index);
  }
  GENSSL_INLINE void write(void* array, Lanes<Element> value) const {
    store(value, static_cast<Element*>(array) + index);
  }
  GENSSL_INLINE void write_streaming(void* array, Lanes<Element> value) const {
    store_streaming(value, static_cast<Element*>(array) + index);
  }
};
template <class Element>
struct PartialRegister {
  int64_t index;
  int count;

  GENSSL_INLINE Lanes<Element> read(const void* array) const {
    return load(static_cast<const Element*>(array) + index, count);
  }
  GENSSL_INLINE void write(void* array, Lanes<Element> value) const {
    store(value, static_cast<Element*>(array) + index, count);
  }
  GENSSL_INLINE void write_streaming(void* array, Lanes<Element> value) const {
    write(array, value);
  }
};

// Calls body with the registers that cover elements [begin, end).
template <class Element, class Body>
GENSSL_INLINE void for_each_register(int64_t begin, int64_t end, const Body& body) {
  constexpr int kLanes = Lanes<Element>::size;
  for (; begin + kLanes <= end; begin += kLanes) body(WholeRegister<Element>{begin});
  if (begin < end) body(PartialRegister<Element>{begin, static_cast<int>(end - begin)});
}

}  // namespace genssl::GENSSL_ISA
