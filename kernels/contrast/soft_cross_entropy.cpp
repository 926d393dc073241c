#include "kernels/contrast/soft_cross_entropy.h"

#include "kernels/common/math.h"
#include "kernels/contrast/row_reductions.h"

namespace genssl::GENSSL_ISA {
namespace {

constexpr double kLog2OfE = 1.4426950408889634, kLn2 = 0.6931471805599453;

// A maximum and a sum of 2^((x - maximum) scale), of a row so far or of a chunk.
struct Powers {
  double maximum, sum;
};

// What joins a chunk to the row so far: the common maximum and both factors.
struct Join {
  double maximum, before, chunk;

  Join(const Powers& a, const Powers& b, double scale)
      : maximum(a.maximum > b.maximum ? a.maximum : b.maximum),
        before(factor(a.maximum, scale)),
        chunk(factor(b.maximum, scale)) {}

  double factor(double own, double scale) const {
    return own == maximum ? 1 : ::exp2((own - maximum) * scale);
  }
};

// One sample's rows, read chunk by chunk.
template <class Element>
struct Sample {
  using T = Number<Element>;
  const SoftCrossEntropyArgs& args;
  int64_t sample;
  const Vec<T> student_scale = Vec<T>(T(kLog2OfE / args.student_temperature));
  const Vec<T> teacher_scale = Vec<T>(T(kLog2OfE / args.teacher_temperature));

  int64_t row(int64_t view) const { return view * args.samples + sample; }
  const Element* student(int64_t s) const {
    return static_cast<const Element*>(args.student) + row(s) * args.columns;
  }
  const Element* teacher(int64_t t) const {
    return static_cast<const Element*>(args.teacher) + row(t) * args.columns;
  }
  template <class Lanes>
  GENSSL_INLINE Vec<T> centered(const Element* teacher, Lanes lanes) const {
    const Vec<T> value = lanes.read(teacher);
    return args.center ? value - in_numbers(lanes).read(args.center) : value;
  }
  template <class Body>
  void for_chunks(const Body& body) const {
    for (int64_t begin = 0; begin < args.columns; begin += kSoftChunk) {
      const int64_t end = begin + kSoftChunk;
      body(begin, end < args.columns ? end : args.columns);
    }
  }
};

template <class Element, class Value>
GENSSL_INLINE Number<Element> maximum_of(int64_t begin, int64_t end, const Value& value) {
  using T = Number<Element>;
  Vec<T> largest(kLowest<T>);
  for_each_register<Element>(begin, end, [&](auto lanes) GENSSL_INLINE_LAMBDA {
    largest = max(largest, inside(value(lanes), lanes, kLowest<T>));
  });
  return highest_lane(largest);
}

// powers[k - begin] = 2^((teacher - center - maximum) scale), and their sum.
template <class Element>
Powers teacher_powers(const Sample<Element>& sample, int64_t t, int64_t begin, int64_t end,
                      Number<Element>* powers) {
  using T = Number<Element>;
  const Element* teacher = sample.teacher(t);
  const T maximum = maximum_of<Element>(
      begin, end, [&](auto lanes) GENSSL_INLINE_LAMBDA { return sample.centered(teacher, lanes); });
  Vec<T> sum(T(0));
  for_each_register<Element>(begin, end, [&](auto lanes) GENSSL_INLINE_LAMBDA {
    const Vec<T> difference = sample.centered(teacher, lanes) - Vec<T>(maximum);
    const Vec<T> power = exp2(difference * sample.teacher_scale);
    in_numbers(lanes).write(powers - begin, power);
    sum = sum + inside(power, lanes, T(0));
  });
  return {double(maximum), double(sum_of_lanes(sum))};
}

// The powers of a student, and the products of `count` teachers' powers with its exponents, which
// are dots[0], dots[stride], ...
template <int count, class Element>
Powers student_powers(const Sample<Element>& sample, int64_t s, int64_t begin, int64_t end,
                      const Number<Element>* teachers, double* dots, int64_t stride) {
  using T = Number<Element>;
  const Element* student = sample.student(s);
  const T maximum = maximum_of<Element>(
      begin, end, [&](auto lanes) GENSSL_INLINE_LAMBDA { return lanes.read(student); });
  Vec<T> sum(T(0)), products[count];
  for (int t = 0; t < count; ++t) products[t] = Vec<T>(T(0));
  for_each_register<Element>(begin, end, [&](auto lanes) GENSSL_INLINE_LAMBDA {
    const Vec<T> difference = lanes.read(student) - Vec<T>(maximum);
    const Vec<T> exponent = difference * sample.student_scale;
    sum = sum + inside(exp2(exponent), lanes, T(0));
    for (int t = 0; t < count; ++t) {
      const Vec<T> power = in_numbers(lanes).read(teachers + t * kSoftChunk - begin);
      products[t] = fma(power, inside(exponent, lanes, T(0)), products[t]);
    }
  });
  for (int t = 0; t < count; ++t) dots[t * stride] = double(sum_of_lanes(products[t]));
  return {double(maximum), double(sum_of_lanes(sum))};
}

// Powers of all rows of a sample, and products [T, S] of teachers' powers and students' exponents.
struct SampleSums {
  Powers *students, *teachers;
  double* dots;
};

template <class Element>
void sums_of_chunk(const Sample<Element>& sample, int64_t begin, int64_t end,
                   Number<Element>* powers, const SampleSums& sums) {
  const SoftCrossEntropyArgs& args = sample.args;
  for (int64_t t = 0; t < args.teachers; ++t) {
    sums.teachers[t] = teacher_powers(sample, t, begin, end, powers + t * kSoftChunk);
  }
  for (int64_t s = 0; s < args.students; ++s) {
    int64_t t = 0;
    for (; t + 2 <= args.teachers; t += 2) {
      sums.students[s] = student_powers<2>(sample, s, begin, end, powers + t * kSoftChunk,
                                           sums.dots + t * args.students + s, args.students);
    }
    if (t < args.teachers) {
      sums.students[s] = student_powers<1>(sample, s, begin, end, powers + t * kSoftChunk,
                                           sums.dots + t * args.students + s, args.students);
    }
  }
}

// Adds a chunk to the sums so far. A product moves to a lower maximum of the student by the sum of
// the teacher's powers times the step.
void join(const SoftCrossEntropyArgs& args, const SampleSums& chunk, const SampleSums& row) {
  const double student_scale = kLog2OfE / args.student_temperature;
  const double teacher_scale = kLog2OfE / args.teacher_temperature;
  for (int64_t s = 0; s < args.students; ++s) {
    Powers &before = row.students[s], &added = chunk.students[s];
    const Join student(before, added, student_scale);
    for (int64_t t = 0; t < args.teachers; ++t) {
      const Join teacher(row.teachers[t], chunk.teachers[t], teacher_scale);
      double& dot = row.dots[t * args.students + s];
      const auto moved = [&](double dot, double sum, double maximum) {
        return dot + sum * ((maximum - student.maximum) * student_scale);
      };
      dot = teacher.before * moved(dot, row.teachers[t].sum, before.maximum) +
            teacher.chunk *
                moved(chunk.dots[t * args.students + s], chunk.teachers[t].sum, added.maximum);
    }
    before = {student.maximum, student.before * before.sum + student.chunk * added.sum};
  }
  for (int64_t t = 0; t < args.teachers; ++t) {
    Powers &before = row.teachers[t], &added = chunk.teachers[t];
    const Join teacher(before, added, teacher_scale);
    before = {teacher.maximum, teacher.before * before.sum + teacher.chunk * added.sum};
  }
}

// The two sets of sums of a thread, in its fp64 scratch.
SampleSums sums_at(const SoftCrossEntropyArgs& args, double* scratch) {
  auto* students = reinterpret_cast<Powers*>(scratch);
  Powers* teachers = students + args.students;
  return {students, teachers, reinterpret_cast<double*>(teachers + args.teachers)};
}

template <class Element>
void write_sample(const Sample<Element>& sample, const SampleSums& sums) {
  using T = Number<Element>;
  const SoftCrossEntropyArgs& args = sample.args;
  const auto write_row = [&](void* rows, int64_t view, const Powers& powers) {
    T* target = static_cast<T*>(rows) + 2 * sample.row(view);
    target[0] = T(powers.maximum);
    target[1] = T(powers.sum);
  };
  for (int64_t s = 0; s < args.students; ++s) write_row(args.student_rows, s, sums.students[s]);
  for (int64_t t = 0; t < args.teachers; ++t) {
    write_row(args.teacher_rows, t, sums.teachers[t]);
    for (int64_t s = 0; s < args.students; ++s) {
      const double mean = sums.dots[t * args.students + s] / sums.teachers[t].sum;
      const double loss = ::log(sums.students[s].sum) - kLn2 * mean;
      static_cast<T*>(args.losses)[sample.row(t * args.students + s)] = T(loss);
    }
  }
}

template <class Element>
void losses_of_samples(const SoftCrossEntropyArgs& args, int64_t begin, int64_t end, void* chunk,
                       double* rows) {
  const SampleSums row = sums_at(args, rows);
  const SampleSums added = sums_at(args, rows + soft_row_numbers(args) / 2);
  for (int64_t i = begin; i < end; ++i) {
    const Sample<Element> sample{args, i};
    auto* powers = static_cast<Number<Element>*>(chunk);
    sample.for_chunks([&](int64_t first, int64_t last) {
      sums_of_chunk(sample, first, last, powers, first ? added : row);
      if (first) join(args, added, row);
    });
    write_sample(sample, row);
  }
}

// Factors of the gradients of one sample; powers are relative to the maximum of the whole row.
template <class Element>
struct Gradients {
  using T = Number<Element>;
  const SoftCrossEntropyBackwardArgs& args;
  const SoftCrossEntropyArgs& forward;
  Sample<Element> sample;
  T *powers, *inner;   // [T, chunk]: 2^z, and the sum over s of what multiplies it
  double* of_student;  // [S]: of p
  double* of_pair;     // [T, S]: g / (A T_s), of 2^z
  double* means;       // [T, S]: of the student's logits under q
  double* sums;        // [T]: of 2^z
  double *student_slope, *teacher_slope;

  Gradients(const SoftCrossEntropyBackwardArgs& args, int64_t i, void* chunk, double* rows)
      : args(args), forward(args.forward), sample{args.forward, i} {
    const int64_t students = forward.students, teachers = forward.teachers;
    powers = static_cast<T*>(chunk);
    inner = powers + teachers * kSoftChunk;
    of_student = rows;
    of_pair = of_student + students;
    means = of_pair + students * teachers;
    sums = means + students * teachers;
    teacher_slope = sums + teachers;
    student_slope = teacher_slope + teachers;
    const int64_t count = soft_row_numbers(forward);
    for (int64_t j = 0; j < count; ++j) rows[j] = 0;
    for (int64_t s = 0; s < students; ++s) {
      for (int64_t t = 0; t < teachers; ++t) {
        const int64_t pair = t * students + s;
        const double g = static_cast<const T*>(args.grad)[sample.row(pair)];
        of_pair[pair] = g / (forward.student_temperature * double(teacher_row(t)[1]));
        of_student[s] += g / (forward.student_temperature * double(student_row(s)[1]));
      }
    }
  }

  const T* student_row(int64_t s) const {
    return static_cast<const T*>(args.forward.student_rows) + 2 * sample.row(s);
  }
  const T* teacher_row(int64_t t) const {
    return static_cast<const T*>(args.forward.teacher_rows) + 2 * sample.row(t);
  }
  void raise_teacher(int64_t t, int64_t begin, int64_t end) {
    const Vec<T> maximum(teacher_row(t)[0]);
    for_each_register<Element>(begin, end, [&](auto lanes) GENSSL_INLINE_LAMBDA {
      const Vec<T> difference = sample.centered(sample.teacher(t), lanes) - maximum;
      const auto numbers = in_numbers(lanes);
      numbers.write(powers + t * kSoftChunk - begin, exp2(difference * sample.teacher_scale));
      if (args.grad_teacher) numbers.write(inner + t * kSoftChunk - begin, Vec<T>(T(0)));
    });
  }

  // Adds a chunk to the products of teacher t with every student.
  void add_products(int64_t t, int64_t begin, int64_t end) {
    const T* power = powers + t * kSoftChunk - begin;
    Vec<T> sum(T(0));
    for_each_register<T>(begin, end, [&](auto lanes) GENSSL_INLINE_LAMBDA {
      sum = sum + inside(lanes.read(power), lanes, T(0));
    });
    sums[t] += double(sum_of_lanes(sum));
    for (int64_t s = 0; s < forward.students; ++s) {
      const Vec<T> maximum(student_row(s)[0]);
      Vec<T> dot(T(0));
      for_each_register<Element>(begin, end, [&](auto lanes) GENSSL_INLINE_LAMBDA {
        const Vec<T> difference = lanes.read(sample.student(s)) - maximum;
        dot = fma(in_numbers(lanes).read(power), inside(difference, lanes, T(0)), dot);
      });
      means[t * forward.students + s] += double(sum_of_lanes(dot));
    }
  }

  // The means that the gradients of teachers are relative to, in a pass of their own.
  void find_means() {
    sample.for_chunks([&](int64_t begin, int64_t end) {
      for (int64_t t = 0; t < forward.teachers; ++t) {
        raise_teacher(t, begin, end);
        add_products(t, begin, end);
      }
    });
    for (int64_t t = 0; t < forward.teachers; ++t) {
      for (int64_t s = 0; s < forward.students; ++s) means[t * forward.students + s] /= sums[t];
    }
  }

  // inner += factor (logit - mean): a sharp teacher's class is near the mean, whose rounding shows.
  template <class Lanes>
  GENSSL_INLINE void add_inner(int64_t t, int64_t s, Lanes numbers, int64_t begin,
                               Vec<T> difference) {
    const double mean = means[t * forward.students + s];
    const T high = T(mean), low = T(mean - double(high));
    const Vec<T> factor{T(of_pair[t * forward.students + s])};
    T* sum = inner + t * kSoftChunk - begin;
    numbers.write(sum, fma(difference - Vec<T>(high) - Vec<T>(low), factor, numbers.read(sum)));
  }

  void student(int64_t s, int64_t begin, int64_t end) {
    const Vec<T> maximum(student_row(s)[0]), of_p{T(of_student[s])};
    Vec<T> slope(T(0));
    for_each_register<Element>(begin, end, [&](auto lanes) GENSSL_INLINE_LAMBDA {
      const auto numbers = in_numbers(lanes);
      const Vec<T> difference = lanes.read(sample.student(s)) - maximum;
      Vec<T> gradient = exp2(difference * sample.student_scale) * of_p;
      for (int64_t t = 0; t < forward.teachers; ++t) {
        const Vec<T> factor{T(of_pair[t * forward.students + s])};
        gradient = fma(-numbers.read(powers + t * kSoftChunk - begin), factor, gradient);
        if (args.grad_teacher) add_inner(t, s, numbers, begin, difference);
      }
      Element* target = static_cast<Element*>(args.grad_student) + sample.row(s) * forward.columns;
      if (args.streaming) {
        lanes.write_streaming(target, gradient);
      } else {
        lanes.write(target, gradient);
      }
      // Past the end of the row a gradient may overflow, and infinity times 0 would be no number.
      slope = fma(inside(gradient, lanes, T(0)), difference, slope);
    });
    student_slope[s] += double(sum_of_lanes(slope));
  }

  void teacher(int64_t t, int64_t begin, int64_t end) {
    const Vec<T> maximum(teacher_row(t)[0]), inverse(T(-1 / forward.teacher_temperature));
    Vec<T> slope(T(0));
    for_each_register<Element>(begin, end, [&](auto lanes) GENSSL_INLINE_LAMBDA {
      const auto numbers = in_numbers(lanes);
      const Vec<T> power = numbers.read(powers + t * kSoftChunk - begin) * inverse;
      const Vec<T> gradient = power * numbers.read(inner + t * kSoftChunk - begin);
      const Vec<T> difference = sample.centered(sample.teacher(t), lanes) - maximum;
      numbers.write(static_cast<T*>(args.grad_teacher) + sample.row(t) * forward.columns, gradient);
      slope = fma(gradient, inside(difference, lanes, T(0)), slope);
    });
    teacher_slope[t] += double(sum_of_lanes(slope));
  }

  void run() {
    const int64_t students = forward.students;
    const int64_t moving_teachers = args.grad_teacher ? forward.teachers : 0;
    if (moving_teachers) find_means();
    sample.for_chunks([&](int64_t begin, int64_t end) {
      for (int64_t t = 0; t < forward.teachers; ++t) raise_teacher(t, begin, end);
      for (int64_t s = 0; s < students; ++s) student(s, begin, end);
      for (int64_t t = 0; t < moving_teachers; ++t) teacher(t, begin, end);
    });
    for (int64_t s = 0; s < students; ++s) {
      static_cast<T*>(args.student_slope)[sample.row(s)] = T(student_slope[s]);
    }
    for (int64_t t = 0; t < moving_teachers; ++t) {
      static_cast<T*>(args.teacher_slope)[sample.row(t)] = T(teacher_slope[t]);
    }
  }
};

template <class Element>
void gradients_of_samples(const SoftCrossEntropyBackwardArgs& args, int64_t begin, int64_t end,
                          void* chunk, double* rows) {
  for (int64_t i = begin; i < end; ++i) Gradients<Element>(args, i, chunk, rows).run();
  if (args.streaming) finish_streaming();
}

}  // namespace

void soft_cross_entropy(const SoftCrossEntropyArgs& args, int64_t begin, int64_t end, void* chunk,
                        double* rows) {
  with_element(args.type,
               [&]<class Element>() { losses_of_samples<Element>(args, begin, end, chunk, rows); });
}

void soft_cross_entropy_backward(const SoftCrossEntropyBackwardArgs& args, int64_t begin,
                                 int64_t end, void* chunk, double* rows) {
  with_element(args.forward.type, [&]<class Element>() {
    gradients_of_samples<Element>(args, begin, end, chunk, rows);
  });
}

}  // namespace genssl::GENSSL_ISA
