#include "kernels/contrast/code_sums.h"

#include "kernels/common/element.h"

namespace genssl::GENSSL_ISA {
namespace {

GENSSL_INLINE void load_doubles(const float* source, Vec<double>& lanes) {
  load_floats(source, lanes);
}
GENSSL_INLINE void load_doubles(const double* source, Vec<double>& lanes) {
  lanes = Vec<double>::load(source);
}

// sums[depth] += weight * row[depth].
template <class Element>
GENSSL_INLINE void add_row(const Element* row, double weight, int64_t depth, double* sums) {
  using Number = typename ComputeType<Element>::type;
  for_each_register<Element>(0, depth, [&](auto lanes) GENSSL_INLINE_LAMBDA {
    constexpr int size = Lanes<Element>::size, step = Vec<double>::size;
    alignas(kVecBytes) Number values[size];
    lanes.read(row).store(values);
#pragma GCC unroll 4
    for (int i = 0; i < size; i += step) {
      double* target = sums + lanes.index + i;
      Vec<double> wide;
      load_doubles(values + i, wide);
      fma(Vec<double>(weight), wide, Vec<double>::load(target)).store(target);
    }
  });
}

// Rows of a code lie anywhere: memory is asked for them this many rows ahead.
constexpr int64_t kAhead = 8;

template <class Element>
GENSSL_INLINE void prefetch(const Element* row, int64_t depth) {
  constexpr int64_t line = 64 / sizeof(Element);
  for (int64_t k = 0; k < depth; k += line) __builtin_prefetch(row + k);
}

template <class T, class Element>
void sum_codes(const CodeSumsArgs<T>& args, int64_t begin, int64_t end, double* sums) {
  const int64_t depth = args.depth, last = args.offsets[end];
  const Element* x = static_cast<const Element*>(args.x);
  for (int64_t code = begin; code < end; ++code) {
    double count = 0;
    for (int64_t k = 0; k < code_sums_workspace<T>(depth); ++k) sums[k] = 0;
    for (int64_t i = args.offsets[code]; i < args.offsets[code + 1]; ++i) {
      const int64_t n = args.order[i];
      const double weight = args.weights ? double(args.weights[n]) : 1.0;
      count += weight;
      if (i + kAhead < last) prefetch(x + args.order[i + kAhead] * depth, depth);
      add_row(x + n * depth, weight, depth, sums);
    }
    args.counts[code] = T(count);
    for (int64_t k = 0; k < depth; ++k) args.sums[code * depth + k] = T(sums[k]);
  }
}

}  // namespace

// Whole registers.
template <class T>
int64_t code_sums_workspace(int64_t depth) {
  return (depth + Vec<T>::size - 1) / Vec<T>::size * Vec<T>::size;
}

template <class T>
void code_sums(const CodeSumsArgs<T>& args, int64_t begin, int64_t end, double* workspace) {
  if constexpr (sizeof(T) == 8) {
    sum_codes<T, double>(args, begin, end, workspace);
  } else {
    with_float_element(
        args.type, [&]<class Element>() { sum_codes<T, Element>(args, begin, end, workspace); });
  }
}

#define GENSSL_INSTANTIATE(T)                       \
  template int64_t code_sums_workspace<T>(int64_t); \
  template void code_sums<T>(const CodeSumsArgs<T>&, int64_t, int64_t, double*);
GENSSL_INSTANTIATE(float)
GENSSL_INSTANTIATE(double)

}  // namespace genssl::GENSSL_ISA
