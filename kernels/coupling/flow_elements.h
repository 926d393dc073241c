// Elementwise transforms of a flow's state by the parameters in scratch.outputs.
#pragma once

#include "kernels/coupling/affine_vec.h"
#include "kernels/coupling/flow_scratch.h"
#include "kernels/coupling/lane_parameters.h"
#include "kernels/coupling/spline_vec.h"

namespace genssl::GENSSL_ISA {

constexpr int kMaxParameters = 3 * kMaxSplineBins + 1;

// A register of elements, in the order of rows and then of output columns: element `column` of row
// `row` first.
struct ElementCursor {
  int64_t row, column;

  GENSSL_INLINE void advance(int64_t columns) {
    if (++column == columns) {
      column = 0;
      ++row;
    }
  }
};

// The same where registers hold neighbours.
template <class T, class Transform>
inline void transform_runs(const FlowPlanArgs<T>& args, const FlowLayer<T>& layer, int64_t rows,
                           FlowScratch<T>& scratch, T* parameters, const Transform& transform) {
  const int64_t columns = layer.outputs.count, count = parameters_per_element(layer);
  for (int64_t r = 0; r < rows; ++r) {
    for (int64_t i = 0; i < columns; i += Vec<T>::size) {
      const LaneRun<T> run(scratch.outputs + r * scratch.output_stride + i, 0);
      load_parameters(&run, 1, columns, count, parameters);
      T* elements = scratch.state + r * args.dim + layer.outputs.index[i];
      const Transformed<T> result = transform(Vec<T>::load(elements), parameters);
      result.value.store(elements);
      result.log_derivative.store(scratch.log_derivatives + r * columns + i);
    }
  }
}

// Transforms the output columns of every row by the parameters in scratch.outputs; `transform` is
// given a register of elements and their parameters.
template <class T, class Transform>
inline void transform_elements(const FlowPlanArgs<T>& args, const FlowLayer<T>& layer, int64_t rows,
                               FlowScratch<T>& scratch, const Transform& transform) {
  constexpr int size = Vec<T>::size;
  const int64_t columns = layer.outputs.count, count = parameters_per_element(layer);
  alignas(kVecBytes) T parameters[kMaxParameters * size];
  if (layer.outputs.run % size == 0) {
    return transform_runs(args, layer, rows, scratch, parameters, transform);
  }
  ElementCursor cursor{0, 0};
  for (int64_t first = 0; first < rows * columns; first += size) {
    const int lanes = static_cast<int>(smaller(size, rows * columns - first));
    T* elements[size];
    alignas(kVecBytes) T x[size] = {};
    LaneRun<T> runs[size];
    int num_runs = 0;
    for (int lane = 0; lane < lanes; ++lane) {
      if (lane == 0 || cursor.column == 0) {
        const T* row = scratch.outputs + cursor.row * scratch.output_stride;
        runs[num_runs++] = LaneRun<T>(row + cursor.column, lane);
      }
      elements[lane] = scratch.state + cursor.row * args.dim + layer.outputs.index[cursor.column];
      x[lane] = *elements[lane];
      cursor.advance(columns);
    }
    load_parameters(runs, num_runs, columns, count, parameters);
    const Transformed<T> result = transform(Vec<T>::load(x), parameters);
    for (int lane = 0; lane < lanes; ++lane) *elements[lane] = result.value[lane];
    result.log_derivative.store(scratch.log_derivatives + first);
  }
}

// In fp64: kSums sums of every kSums-th number, added in order.
template <class Number>
GENSSL_INLINE double sum_of(int64_t count, const Number& number) {
  constexpr int kSums = 8;
  double sums[kSums] = {}, total = 0;
  int64_t i = 0;
  for (; i + kSums <= count; i += kSums) {
    for (int k = 0; k < kSums; ++k) sums[k] += number(i + k);
  }
  for (int k = 0; i < count; ++i, ++k) sums[k] += number(i);
  for (double sum : sums) total += sum;
  return total;
}

template <class T>
inline void add_log_derivatives(int64_t rows, int64_t columns, const T* log_derivatives,
                                double* log_abs_det) {
  for (int64_t r = 0; r < rows; ++r) {
    const T* row = log_derivatives + r * columns;
    log_abs_det[r] += sum_of(columns, [&](int64_t i) -> double { return row[i]; });
  }
}

// Affine transforms of registers of neighbours: the clamp is chosen once, so that registers
// overlap.
template <Clamp clamp, bool inverse, class T>
inline void affine_runs(const FlowPlanArgs<T>& args, const FlowLayer<T>& layer, int64_t rows,
                        FlowScratch<T>& scratch) {
  const int64_t columns = layer.outputs.count;
  const AffineOptions<T> options = layer.affine;
  for (int64_t r = 0; r < rows; ++r) {
    const T* shifts = scratch.outputs + r * scratch.output_stride;
    T* log_derivatives = scratch.log_derivatives + r * columns;
    for (int64_t i = 0; i < columns; i += Vec<T>::size) {
      T* elements = scratch.state + r * args.dim + layer.outputs.index[i];
      Vec<T> log_scale(T(0));
      if constexpr (clamp != Clamp::additive) log_scale = Vec<T>::load(shifts + columns + i);
      const Transformed<T> result = affine_transform<clamp, inverse>(
          options, Vec<T>::load(elements), Vec<T>::load(shifts + i), log_scale);
      result.value.store(elements);
      result.log_derivative.store(log_derivatives + i);
    }
  }
}

template <class T>
inline void apply_affine(const FlowPlanArgs<T>& args, const FlowLayer<T>& layer, bool inverse,
                         int64_t rows, FlowScratch<T>& scratch) {
  if (layer.outputs.run % Vec<T>::size == 0) {
    return with_clamp(layer.affine.clamp, [&]<Clamp clamp>() {
      (inverse ? affine_runs<clamp, true, T> : affine_runs<clamp, false, T>)(args, layer, rows,
                                                                             scratch);
    });
  }
  const bool additive = parameters_per_element(layer) == 1;
  transform_elements(args, layer, rows, scratch, [&](Vec<T> x, const T* parameters) {
    const Vec<T> shift = Vec<T>::load(parameters);
    const Vec<T> log_scale = additive ? Vec<T>(T(0)) : Vec<T>::load(parameters + Vec<T>::size);
    return inverse ? affine_inverse(layer.affine, x, shift, log_scale)
                   : affine_forward(layer.affine, x, shift, log_scale);
  });
}

template <class T>
inline void apply_spline(const FlowPlanArgs<T>& args, const FlowLayer<T>& layer, bool inverse,
                         int64_t rows, FlowScratch<T>& scratch) {
  transform_elements(args, layer, rows, scratch, [&](Vec<T> x, const T* parameters) {
    return inverse ? spline_inverse(layer.spline, x, parameters)
                   : spline_forward(layer.spline, x, parameters);
  });
}

}  // namespace genssl::GENSSL_ISA
