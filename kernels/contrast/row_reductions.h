// What sums and maxima over the registers that cover a row of logits need.
#pragma once

#include "kernels/common/element.h"
#include "kernels/common/lanes.h"

namespace genssl::GENSSL_ISA {

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

}  // namespace genssl::GENSSL_ISA
