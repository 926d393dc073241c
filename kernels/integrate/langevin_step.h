// One Langevin step, z standard normal:
//
//   x' = x + eps s + sqrt(2 eps) z,   eps given or 2 alpha (snr |z| / |s|)^2 per sample, 0 where
//   |s| = 0
//
// Samples are cut into segments of kLangevinSegment elements. A first pass draws the noise and sums
// the squares of each segment in fp64, lane by lane; a second adds the sums of a sample's segments
// in order and applies the step. Both partitions are fixed, so the result does not depend on the
// number of threads. The noise is kept between the passes: 786432 normals take 0.55 ms of one core
// to draw and 0.1 ms to write and read again.
#pragma once

#include <stdint.h>

#include "kernels/common/element_type.h"
#include "kernels/common/isa.h"

namespace genssl {

constexpr int64_t kLangevinSegment = 2048;

struct LangevinStepArgs {
  ElementType type;
  int64_t elements_per_sample, segments_per_sample;
  const void* x;
  const void* score;
  const void* given_noise;  // null: drawn
  void* next;

  double snr;  // NaN: `step_size` is used and there is no first pass
  double step_size, alpha;
  uint64_t seed;
  uint32_t step;
  uint64_t first_sample;

  float* noise;     // scratch [samples, elements], null where noise is given or no first pass runs
  double* squares;  // scratch [samples, segments, 2]: |z|^2 and |s|^2
};

}  // namespace genssl

// Segments [begin, end) of the flattened [samples, segments per sample].
GENSSL_DECLARE_KERNEL(void, langevin_squares,
                      (const LangevinStepArgs& args, int64_t begin, int64_t end))
GENSSL_DECLARE_KERNEL(void, langevin_step,
                      (const LangevinStepArgs& args, int64_t begin, int64_t end))
