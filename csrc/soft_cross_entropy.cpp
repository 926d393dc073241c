#include "kernels/contrast/soft_cross_entropy.h"

#include <algorithm>
#include <tuple>

#include "csrc/common.h"
#include "csrc/memory.h"
#include "csrc/parallel.h"

namespace genssl {
namespace {

// Gradients and logits that together exceed this do not fit into the last cache; then stores that
// bypass it pay.
constexpr int64_t kCacheBytes = int64_t{32} << 20;
// Elements that are worth a thread.
constexpr int64_t kGrain = 16384;

double number_of(const Tensor& tensor, ScalarType type, const char* name) {
  check_type(tensor, name, type);
  STD_TORCH_CHECK(tensor.numel() == 1, name, ": expected one element, got the shape ",
                  shape_of(tensor));
  const void* data = tensor.const_data_ptr();
  return type == ScalarType::Double ? *static_cast<const double*>(data)
                                    : *static_cast<const float*>(data);
}

// Tensors of one call, kept alive beside the pointers to them.
struct Logits {
  Tensor student, teacher;
  OptionalTensor center;
  ScalarType numbers;
  SoftCrossEntropyArgs args;

  Logits(const Tensor& given_student, const Tensor& given_teacher,
         const OptionalTensor& given_center, const Tensor& student_temperature,
         const Tensor& teacher_temperature)
      : student(as_contiguous(given_student)),
        teacher(as_contiguous(given_teacher)),
        numbers(compute_type(student)) {
    STD_TORCH_CHECK(student.dim() == 3, "student: expected the shape [S, B, K], got ",
                    shape_of(student));
    check_shape(teacher, "teacher", {teacher.size(0), student.size(1), student.size(2)});
    check_type(teacher, "teacher", student.scalar_type());
    args = {
        .type = element_type(student, "student"),
        .students = student.size(0),
        .teachers = teacher.size(0),
        .samples = student.size(1),
        .columns = student.size(2),
        .student_temperature = number_of(student_temperature, numbers, "student_temperature"),
        .teacher_temperature = number_of(teacher_temperature, numbers, "teacher_temperature"),
        .student = student.const_data_ptr(),
        .teacher = teacher.const_data_ptr(),
    };
    if (!given_center) return;
    check_shape(*given_center, "center", {args.columns});
    check_type(*given_center, "center", numbers);
    center = as_contiguous(*given_center);
    args.center = center->const_data_ptr();
  }

  template <class Kernel, class Args>
  void run(const Kernel& kernel, const Args& kernel_args) const {
    const int64_t row = (args.students + args.teachers) * args.columns;
    const int64_t grain = std::max(kGrain / std::max(row, int64_t{1}), int64_t{1});
    parallel_for(0, args.samples, grain, [&](int64_t begin, int64_t end) {
      const int64_t chunk = soft_chunk_numbers(args);
      double* memory = thread_scratch<double>(chunk + soft_row_numbers(args));
      kernel(kernel_args, begin, end, memory, memory + chunk);
    });
  }
};

std::tuple<Tensor, Tensor, Tensor> soft_cross_entropy(Tensor student, Tensor teacher,
                                                      OptionalTensor center,
                                                      Tensor student_temperature,
                                                      Tensor teacher_temperature,
                                                      bool teacher_moves) {
  Logits logits(student, teacher, center, student_temperature, teacher_temperature);
  SoftCrossEntropyArgs& args = logits.args;
  Tensor losses = new_empty(student, {args.teachers, args.students, args.samples}, logits.numbers);
  Tensor student_rows = new_empty(student, {args.students, args.samples, 2}, logits.numbers);
  Tensor teacher_rows = new_empty(student, {args.teachers, args.samples, 2}, logits.numbers);
  args.losses = losses.mutable_data_ptr();
  args.student_rows = student_rows.mutable_data_ptr();
  args.teacher_rows = teacher_rows.mutable_data_ptr();
  logits.run(GENSSL_DISPATCH(soft_cross_entropy), args);
  return {losses, student_rows, teacher_rows};
}

std::tuple<Tensor, Tensor, Tensor, Tensor> soft_cross_entropy_backward(
    Tensor grad, Tensor student, Tensor teacher, OptionalTensor center, Tensor student_temperature,
    Tensor teacher_temperature, bool teacher_moves, Tensor student_rows, Tensor teacher_rows) {
  Logits logits(student, teacher, center, student_temperature, teacher_temperature);
  SoftCrossEntropyArgs& args = logits.args;
  const int64_t students = args.students, teachers = args.teachers, samples = args.samples;
  check_shape(student_rows, "student_rows", {students, samples, 2});
  check_shape(teacher_rows, "teacher_rows", {teachers, samples, 2});
  check_shape(grad, "grad", {teachers, students, samples});
  for (Tensor* tensor : {&grad, &student_rows, &teacher_rows}) {
    check_type(*tensor, "grad, rows", logits.numbers);
    *tensor = as_contiguous(*tensor);
  }
  args.student_rows = const_cast<void*>(student_rows.const_data_ptr());
  args.teacher_rows = const_cast<void*>(teacher_rows.const_data_ptr());
  Tensor grad_student = new_empty_like(logits.student);
  Tensor student_slope = new_empty(student, {students, samples}, logits.numbers);
  Tensor grad_teacher = teacher_moves ? new_empty(teacher, teacher.sizes(), logits.numbers)
                                      : new_empty(teacher, {0}, logits.numbers);
  Tensor teacher_slope = teacher_moves ? new_empty(student, {teachers, samples}, logits.numbers)
                                       : new_empty(student, {0}, logits.numbers);
  SoftCrossEntropyBackwardArgs backward{
      .forward = args,
      .grad = grad.const_data_ptr(),
      .grad_student = grad_student.mutable_data_ptr(),
      .student_slope = student_slope.mutable_data_ptr(),
      .grad_teacher = teacher_moves ? grad_teacher.mutable_data_ptr() : nullptr,
      .teacher_slope = teacher_slope.mutable_data_ptr(),
  };
  const int64_t size = static_cast<int64_t>(student.element_size());
  const int64_t offsets = reinterpret_cast<intptr_t>(backward.grad_student) | args.columns * size;
  backward.streaming = size >= 4 && offsets % 64 == 0 && 2 * student.numel() * size > kCacheBytes;
  logits.run(GENSSL_DISPATCH(soft_cross_entropy_backward), backward);
  return {grad_student, student_slope, grad_teacher, teacher_slope};
}

}  // namespace
}  // namespace genssl

STABLE_TORCH_LIBRARY_IMPL(genssl_fast, CPU, m) {
  m.impl("_soft_cross_entropy", TORCH_BOX(&genssl::soft_cross_entropy));
  m.impl("_soft_cross_entropy_backward", TORCH_BOX(&genssl::soft_cross_entropy_backward));
}
