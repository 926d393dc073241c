// The lanes of one register together: their sum, the lowest and the highest.
#pragma once

#include "kernels/common/vec.h"

namespace genssl::GENSSL_ISA {

// All lanes by an operation on two registers, halves first.
template <class T, class Operation>
GENSSL_INLINE T fold(Vec<T> a, const Operation& operation) {
#pragma GCC unroll 4
  for (int half = Vec<T>::size / 2; half > 0; half /= 2) {
    typename Vec<T>::Mask other;
    for (int lane = 0; lane < Vec<T>::size; ++lane) other[lane] = lane ^ half;
    a = operation(a, Vec<T>(__builtin_shuffle(a.value, other)));
  }
  return a[0];
}
template <class T>
GENSSL_INLINE T sum_of_lanes(Vec<T> a) {
  return fold(a, [](Vec<T> b, Vec<T> c) { return b + c; });
}
// One lane after the other: what rounds depends on the order.
template <class T>
GENSSL_INLINE T sum_in_order(Vec<T> a) {
  T sum = a[0];
  for (int lane = 1; lane < Vec<T>::size; ++lane) sum += a[lane];
  return sum;
}
template <class T>
GENSSL_INLINE T lowest_lane(Vec<T> a) {
  return fold(a, [](Vec<T> b, Vec<T> c) { return min(b, c); });
}
template <class T>
GENSSL_INLINE T highest_lane(Vec<T> a) {
  return fold(a, [](Vec<T> b, Vec<T> c) { return max(b, c); });
}

}  // namespace genssl::GENSSL_ISA
