// The functions of kernels/common/math.h over arrays, for tests; counts are multiples of a
// register.
#include "kernels/common/math.h"

#define GENSSL_TEST_FUNCTION(name, T, expression)                   \
  extern "C" void name(const T* source, T* target, int64_t count) { \
    using namespace genssl::GENSSL_ISA;                             \
    for (int64_t i = 0; i < count; i += Vec<T>::size) {             \
      const Vec<T> x = Vec<T>::load(source + i);                    \
      (expression).store(target + i);                               \
    }                                                               \
  }

GENSSL_TEST_FUNCTION(exp_float32, float, exp(x))
GENSSL_TEST_FUNCTION(exp2_float32, float, exp2(x))
GENSSL_TEST_FUNCTION(log_float32, float, log(x))
GENSSL_TEST_FUNCTION(sin_float32, float, sincos(x).sine)
GENSSL_TEST_FUNCTION(cos_float32, float, sincos(x).cosine)
GENSSL_TEST_FUNCTION(sigmoid_float32, float, sigmoid(x))
GENSSL_TEST_FUNCTION(silu_float32, float, silu(x))
GENSSL_TEST_FUNCTION(softplus_float32, float, softplus(x))
GENSSL_TEST_FUNCTION(tanh_float32, float, tanh(x))
GENSSL_TEST_FUNCTION(atan_float32, float, atan(x))
GENSSL_TEST_FUNCTION(exp_float64, double, exp(x))
GENSSL_TEST_FUNCTION(exp2_float64, double, exp2(x))
GENSSL_TEST_FUNCTION(log_float64, double, log(x))
GENSSL_TEST_FUNCTION(sin_float64, double, sincos(x).sine)
GENSSL_TEST_FUNCTION(cos_float64, double, sincos(x).cosine)
GENSSL_TEST_FUNCTION(sigmoid_float64, double, sigmoid(x))
GENSSL_TEST_FUNCTION(silu_float64, double, silu(x))
GENSSL_TEST_FUNCTION(softplus_float64, double, softplus(x))
GENSSL_TEST_FUNCTION(tanh_float64, double, tanh(x))
GENSSL_TEST_FUNCTION(atan_float64, double, atan(x))
