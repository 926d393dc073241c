// Sums and maxima over the registers that cover a row of logits.
#pragma once

#include "kernels/common/element.h"

namespace genssl::GENSSL_ISA {

template <class Element>
using Number = typename ComputeType<Element>::type;

// The lowest finite number.
template <class T>
constexpr T kLowest = T(-1.7976931348623157e+308);
template <>
inline constexpr float kLowest<float> = -3.40282347e+38f;

// The same place in an array of the numbers in which elements are computed.
template <class Element>
GENSSL_INLINE WholeRegister<Number<Element>> in_numbers(WholeRegister<Element> lanes) {
  return {lanes.index};
}
template <class Element>
GENSSL_INLINE PartialRegister<Number<Element>> in_numbers(PartialRegister<Element> lanes) {
  return {lanes.index, lanes.count};
}

// The value, with `neutral` in lanes past the end of the row.
template <class T, class Element>
GENSSL_INLINE Vec<T> inside(Vec<T> value, WholeRegister<Element>, T) {
  return value;
}
template <class T, class Element>
GENSSL_INLINE Vec<T> inside(Vec<T> value, PartialRegister<Element> lanes, T neutral) {
  T numbers[Vec<T>::size];
  for (int lane = 0; lane < Vec<T>::size; ++lane) numbers[lane] = neutral;
  value.store(numbers, lanes.count);
  return Vec<T>::load(numbers);
}

// The sum of the lanes, in pairs.
template <class T>
GENSSL_INLINE T sum_of_lanes(Vec<T> value) {
  T numbers[Vec<T>::size];
  value.store(numbers);
  for (int half = Vec<T>::size / 2; half > 0; half /= 2) {
    for (int lane = 0; lane < half; ++lane) numbers[lane] += numbers[lane + half];
  }
  return numbers[0];
}
template <class T>
GENSSL_INLINE T largest_lane(Vec<T> value) {
  T result = value[0];
  for (int lane = 1; lane < Vec<T>::size; ++lane) {
    result = value[lane] > result ? value[lane] : result;
  }
  return result;
}

// Calls body.template operator()<Element>().
template <class Body>
inline void with_element(ElementType type, const Body& body) {
  switch (type) {
    case ElementType::float32:
      return body.template operator()<float>();
    case ElementType::float64:
      return body.template operator()<double>();
    case ElementType::bfloat16:
      return body.template operator()<BFloat16>();
    case ElementType::float16:
      return body.template operator()<Float16>();
  }
}

}  // namespace genssl::GENSSL_ISA
