#include "kernels/integrate/langevin_step.h"

#include "kernels/common/element.h"
#include "kernels/common/philox_vec.h"

namespace genssl::GENSSL_ISA {
namespace {

// A range of elements of the flattened samples.
struct Range {
  int64_t begin, end;
};

Range range_of_segment(const LangevinStepArgs& args, int64_t segment) {
  const int64_t segments = args.segments_per_sample, elements = args.elements_per_sample;
  const int64_t sample_begin = segment / segments * elements;
  const int64_t begin = sample_begin + segment % segments * kLangevinSegment;
  const int64_t end = begin + kLangevinSegment;
  return {begin, end < sample_begin + elements ? end : sample_begin + elements};
}

void draw_noise(const LangevinStepArgs& args, Range range, float* target) {
  fill<Normal>(args.seed, args.step, args.first_sample, args.elements_per_sample, range.begin,
               range.end, target);
}

// The sum of squares in fp64, a partial sum per lane.
struct SumOfSquares {
  Vec<double> partial{0.0};

  GENSSL_INLINE void add(Vec<double> a) { partial = fma(a, a, partial); }
  GENSSL_INLINE void add(Vec<float> a) {
    float lanes[Vec<float>::size];
    a.store(lanes);
    for (int i = 0; i < 2; ++i) {
      Vec<double> half;
      load_floats(lanes + i * Vec<double>::size, half);
      add(half);
    }
  }
  GENSSL_INLINE double total() const {
    double result = 0;
    for (int lane = 0; lane < Vec<double>::size; ++lane) result += partial[lane];
    return result;
  }
};

template <class Element>
double sum_of_squares(const void* values, Range range) {
  SumOfSquares sum;
  for_each_register<Element>(range.begin, range.end,
                             [&](auto lanes) GENSSL_INLINE_LAMBDA { sum.add(lanes.read(values)); });
  return sum.total();
}

template <class Element>
void square_segments(const LangevinStepArgs& args, int64_t begin, int64_t end) {
  for (int64_t segment = begin; segment < end; ++segment) {
    const Range range = range_of_segment(args, segment);
    double* squares = args.squares + 2 * segment;
    if (args.given_noise) {
      squares[0] = sum_of_squares<Element>(args.given_noise, range);
    } else {
      draw_noise(args, range, args.noise + range.begin);
      squares[0] = sum_of_squares<float>(args.noise, range);
    }
    squares[1] = sum_of_squares<Element>(args.score, range);
  }
}

double step_size_of_sample(const LangevinStepArgs& args, int64_t sample) {
  if (args.snr != args.snr) return args.step_size;
  const int64_t segments = args.segments_per_sample;
  const double* squares = args.squares + 2 * sample * segments;
  double noise = 0, score = 0;
  for (int64_t i = 0; i < segments; ++i) {
    noise += squares[2 * i];
    score += squares[2 * i + 1];
  }
  return score == 0 ? 0.0 : 2.0 * args.alpha * args.snr * args.snr * (noise / score);
}

// `noise(lanes)` gives the register of noise.
template <class Element, class Noise>
void step_range(const LangevinStepArgs& args, Range range, double step_size, const Noise& noise) {
  using Numbers = Lanes<Element>;
  using Number = typename ComputeType<Element>::type;
  const Numbers drift{Number(step_size)}, diffusion{Number(::sqrt(2.0 * step_size))};
  for_each_register<Element>(range.begin, range.end, [&](auto lanes) GENSSL_INLINE_LAMBDA {
    const Numbers drifted = fma(drift, lanes.read(args.score), lanes.read(args.x));
    lanes.write(args.next, fma(diffusion, noise(lanes), drifted));
  });
}

template <class Element>
void step_segments(const LangevinStepArgs& args, int64_t begin, int64_t end) {
  float drawn[kLangevinSegment + Vec<float>::size];
  for (int64_t segment = begin; segment < end; ++segment) {
    const Range range = range_of_segment(args, segment);
    const double step_size = step_size_of_sample(args, segment / args.segments_per_sample);
    if (args.given_noise) {
      step_range<Element>(args, range, step_size, [&](auto lanes) GENSSL_INLINE_LAMBDA {
        return lanes.read(args.given_noise);
      });
      continue;
    }
    if (!args.noise) draw_noise(args, range, drawn);
    const float* noise = args.noise ? args.noise + range.begin : drawn;
    step_range<Element>(args, range, step_size, [&](auto lanes) GENSSL_INLINE_LAMBDA {
      Lanes<Element> result;
      load_floats(noise + (lanes.index - range.begin), result);
      return result;
    });
  }
}

}  // namespace

void langevin_squares(const LangevinStepArgs& args, int64_t begin, int64_t end) {
  with_element(args.type, [&]<class Element>() { square_segments<Element>(args, begin, end); });
}

void langevin_step(const LangevinStepArgs& args, int64_t begin, int64_t end) {
  with_element(args.type, [&]<class Element>() { step_segments<Element>(args, begin, end); });
}

}  // namespace genssl::GENSSL_ISA
