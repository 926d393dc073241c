// Parameters of neighbouring elements as rows with a lane for each.
//
// A network writes parameter j of element c of its sample at j * elements + c, so that a register
// of elements reads each parameter by one load from every sample it touches.
#pragma once

#include "kernels/common/vec.h"

namespace genssl::GENSSL_ISA {

// Lanes from `first` on belong to one sample; lane 0's parameter 0 would lie at `origin`.
template <class T>
struct LaneRun {
  const T* origin;
  typename Vec<T>::Mask lanes;

  GENSSL_INLINE LaneRun() = default;
  GENSSL_INLINE LaneRun(const T* first_parameter, int first) : origin(first_parameter - first) {
    for (int lane = 0; lane < Vec<T>::size; ++lane) lanes[lane] = lane >= first ? -1 : 0;
  }
};

// rows[j] = parameter j of each lane. Reads whole registers: the lanes of other samples are loaded
// too, and dropped.
template <class T>
GENSSL_INLINE void load_parameters(const LaneRun<T>* runs, int num_runs, int64_t elements,
                                   int64_t count, T* rows) {
  for (int64_t j = 0; j < count; ++j) {
    Vec<T> row = Vec<T>::load(runs[0].origin + j * elements);
    for (int i = 1; i < num_runs; ++i) {
      row = select(runs[i].lanes, Vec<T>::load(runs[i].origin + j * elements), row);
    }
    row.store(rows + j * Vec<T>::size);
  }
}

}  // namespace genssl::GENSSL_ISA
