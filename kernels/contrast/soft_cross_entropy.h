// Cross-entropy between softmaxes, of every teacher t with every student s of the same sample b:
//
//   L_tsb = -sum_k q_tk log p_sk = log Z_s - sum_k q_tk w_sk
//   w_s = (student - max) / T_s,  Z_s = sum_k e^w,  p = e^w / Z
//   z_t = (teacher - center - max) / T_t,  A_t = sum_k e^z,  q = e^z / A
//
// and with g the gradient of L
//
//   d student = (sum_t g_ts (p_s - q_t)) / T_s
//   d teacher = q_t sum_s g_ts (<q_t, w_s> - w_s) / T_t
//
// Each pass reads every row once, and twice where teachers have gradients, in chunks that stay in
// the nearest cache; the rest is numbers per row. A chunk has maxima of its own, and a few numbers
// in fp64 join it to those before it. Scores relative to the maximum keep a small loss of large
// logits exact. The rows of one sample are one piece of work, so the result does not depend on the
// number of threads.
#pragma once

#include <stdint.h>

#include "kernels/common/element_type.h"
#include "kernels/common/isa.h"

namespace genssl {

constexpr int64_t kSoftChunk = 1024;

// Arrays but logits and the students' gradients hold numbers: double for double, float for the
// rest.
struct SoftCrossEntropyArgs {
  ElementType type;
  int64_t students, teachers, samples, columns;
  double student_temperature, teacher_temperature;
  const void* student;  // [S, B, K]
  const void* teacher;  // [T, B, K]
  const void* center;   // [K] or null
  void* losses;         // [T, S, B]
  void* student_rows;   // [S, B, 2]: max, Z
  void* teacher_rows;   // [T, B, 2]: max, A
};

struct SoftCrossEntropyBackwardArgs {
  SoftCrossEntropyArgs forward;
  const void* grad;     // [T, S, B]
  void* grad_student;   // [S, B, K]
  void* student_slope;  // [S, B]: sum_k of gradient times logit
  void* grad_teacher;   // [T, B, K] numbers, or null
  void* teacher_slope;  // [T, B]
  bool streaming;       // gradients bypass the caches
};

// Of one thread: numbers for the chunk, and fp64 for what is known of the rows of a sample.
static inline int64_t soft_chunk_numbers(const SoftCrossEntropyArgs& args) {
  return 2 * args.teachers * kSoftChunk;
}
static inline int64_t soft_row_numbers(const SoftCrossEntropyArgs& args) {
  return 4 * (args.students + args.teachers) + 2 * args.students * args.teachers;
}

}  // namespace genssl

// Samples [begin, end).
GENSSL_DECLARE_KERNEL(void, soft_cross_entropy,
                      (const SoftCrossEntropyArgs& args, int64_t begin, int64_t end, void* chunk,
                       double* rows))
GENSSL_DECLARE_KERNEL(void, soft_cross_entropy_backward,
                      (const SoftCrossEntropyBackwardArgs& args, int64_t begin, int64_t end,
                       void* chunk, double* rows))
