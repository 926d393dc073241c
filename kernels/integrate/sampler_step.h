// One step of a sampler, a row of a coefficient table:
//
//   prediction_0 = clamp(d0 x + d1 output, -clip, clip)
//   x' = sum_j a_j state_j + sum_j b_j prediction_j + e output + c noise
//
// in that order, with fused multiply-adds; state_0 = x, prediction_0 is the new one.
//
// One pass over memory in tiles of kSamplerTile elements. The noise of a tile is drawn into a
// buffer in the first-level cache just before it is used: small tiles let the memory reads of one
// overlap the arithmetic of the next (DDPM step, 64x3x64x64, one core: 0.86 ms with tiles of 2048,
// 0.78 with 512). Without noise the step runs at the rate of a plain stream with two reads and two
// writes (0.18 ms). Tensors that exceed the caches are stored past them: 2^24 elements 11.9 to 7.5
// ms.
#pragma once

#include <stdint.h>

#include "kernels/common/element_type.h"
#include "kernels/common/isa.h"

namespace genssl {

constexpr int64_t kSamplerTile = 512;
// The most states or predictions that a row can combine.
constexpr int kMaxHistory = 16;

struct SamplerStepArgs {
  ElementType type;
  int64_t samples, elements_per_sample;
  const void* x;
  const void* output;
  const void* noise;  // null: drawn where a row asks for it
  // state_j and prediction_j for j >= 1
  int num_old_states, num_old_predictions;
  const void* old_states[kMaxHistory];
  const void* old_predictions[kMaxHistory];
  void* next;  // may be x
  void* prediction;
  bool streaming;  // results bypass the caches: `rows` is null, next and prediction are aligned to
                   // 64 bytes

  // Table [rows, num_states + num_predictions + 6]: a, b, e, c, d0, d1, clip, time.
  const double* coefficients;
  int num_states, num_predictions;
  const int64_t* rows;  // of each sample; null: all use `row`
  int64_t row;
  double clip;  // NaN: as the row says

  uint64_t seed;
  uint32_t step;
  uint64_t first_sample;
};

}  // namespace genssl

// Tiles [begin, end) of the flattened samples.
GENSSL_DECLARE_KERNEL(void, sampler_step, (const SamplerStepArgs& args, int64_t begin, int64_t end))
