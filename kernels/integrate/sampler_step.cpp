#include "kernels/integrate/sampler_step.h"

#include "kernels/common/element.h"
#include "kernels/common/philox_vec.h"

namespace genssl::GENSSL_ISA {
namespace {

// Elements of one sample within a tile, and the coefficients that they share.
template <class Element>
struct Segment {
  using Number = typename ComputeType<Element>::type;

  int64_t begin, end;
  Number a[kMaxHistory], b[kMaxHistory], e, c, d0, d1, clip;
};

const double* coefficients_of(const SamplerStepArgs& args, int64_t sample) {
  const int64_t row = args.rows ? args.rows[sample] : args.row;
  return args.coefficients + row * (args.num_states + args.num_predictions + 6);
}

template <class Element>
void read_coefficients(const SamplerStepArgs& args, int64_t sample, Segment<Element>& segment) {
  using Number = typename ComputeType<Element>::type;
  const double* a = coefficients_of(args, sample);
  const double* b = a + args.num_states;
  const double* rest = b + args.num_predictions;
  for (int j = 0; j < args.num_states; ++j) segment.a[j] = Number(a[j]);
  for (int j = 0; j < args.num_predictions; ++j) segment.b[j] = Number(b[j]);
  if (args.num_predictions == 0) segment.b[0] = 0;
  segment.e = Number(rest[0]);
  segment.c = Number(rest[1]);
  segment.d0 = Number(rest[2]);
  segment.d1 = Number(rest[3]);
  segment.clip = Number(args.clip == args.clip ? args.clip : rest[4]);
}

// What adds c noise to x'.
struct NoNoise {
  template <class Number, class Access>
  GENSSL_INLINE Number add(Number, const Access&, Number next) const {
    return next;
  }
};
struct GivenNoise {
  const void* noise;

  template <class Number, class Access>
  GENSSL_INLINE Number add(Number c, const Access& lanes, Number next) const {
    return fma(c, lanes.read(noise), next);
  }
};
struct DrawnNoise {
  const float* tile;  // readable up to a register past its end
  int64_t tile_begin;

  template <class Number, class Access>
  GENSSL_INLINE Number add(Number c, const Access& lanes, Number next) const {
    Number noise;
    load_floats(tile + (lanes.index - tile_begin), noise);
    return fma(c, noise, next);
  }
};

template <class Element, class Noise>
void step_segment(const SamplerStepArgs& args, const Segment<Element>& segment, Noise noise) {
  using Number = Lanes<Element>;
  // Locals: what lies behind a reference would be loaded again after every store.
  const Number a(segment.a[0]), b(segment.b[0]), e(segment.e), c(segment.c);
  const Number d0(segment.d0), d1(segment.d1), clip(segment.clip);
  const void *const x_source = args.x, *const output_source = args.output;
  void *const next_target = args.next, *const prediction_target = args.prediction;
  const int num_old_states = args.num_old_states, num_old_predictions = args.num_old_predictions;
  const bool streaming = args.streaming;
  for_each_register<Element>(segment.begin, segment.end, [&](auto lanes) GENSSL_INLINE_LAMBDA {
    const Number x = lanes.read(x_source), output = lanes.read(output_source);
    Number prediction = fma(d1, output, d0 * x);
    prediction = min(max(prediction, -clip), clip);
    Number next = a * x;
    for (int j = 0; j < num_old_states; ++j) {
      next = fma(Number(segment.a[j + 1]), lanes.read(args.old_states[j]), next);
    }
    next = fma(b, prediction, next);
    for (int j = 0; j < num_old_predictions; ++j) {
      next = fma(Number(segment.b[j + 1]), lanes.read(args.old_predictions[j]), next);
    }
    next = fma(e, output, next);
    next = noise.add(c, lanes, next);
    if (streaming) {
      lanes.write_streaming(prediction_target, prediction);
      lanes.write_streaming(next_target, next);
    } else {
      lanes.write(prediction_target, prediction);
      lanes.write(next_target, next);
    }
  });
}

bool draws_noise(const SamplerStepArgs& args, int64_t first_sample, int64_t last_sample) {
  const int column = args.num_states + args.num_predictions + 1;
  if (args.noise) return false;
  for (int64_t sample = first_sample; sample <= last_sample; ++sample) {
    if (coefficients_of(args, sample)[column] != 0) return true;
    if (!args.rows) return false;
  }
  return false;
}

template <class Element>
void step_tile(const SamplerStepArgs& args, int64_t begin, int64_t end) {
  const int64_t elements = args.elements_per_sample;
  const int64_t first = begin / elements, last = (end - 1) / elements;
  float numbers[kSamplerTile + Vec<float>::size];
  const bool drawn = draws_noise(args, first, last);
  if (drawn) {
    fill<Normal>(args.seed, args.step, args.first_sample, elements, begin, end, numbers);
  }
  Segment<Element> segment;
  segment.begin = begin;
  for (int64_t sample = first; segment.begin < end; ++sample, segment.begin = segment.end) {
    const int64_t sample_end = (sample + 1) * elements;
    segment.end = args.rows && sample_end < end ? sample_end : end;
    read_coefficients(args, sample, segment);
    if (args.noise) {
      step_segment(args, segment, GivenNoise{args.noise});
    } else if (drawn && segment.c != 0) {
      step_segment(args, segment, DrawnNoise{numbers, begin});
    } else {
      step_segment(args, segment, NoNoise{});
    }
  }
}

template <class Element>
void step_tiles(const SamplerStepArgs& args, int64_t begin, int64_t end) {
  const int64_t total = args.samples * args.elements_per_sample;
  for (int64_t tile = begin; tile < end; ++tile) {
    const int64_t first = tile * kSamplerTile, next = first + kSamplerTile;
    step_tile<Element>(args, first, next < total ? next : total);
  }
  if (args.streaming) finish_streaming();
}

}  // namespace

void sampler_step(const SamplerStepArgs& args, int64_t begin, int64_t end) {
  with_element(args.type, [&]<class Element>() { step_tiles<Element>(args, begin, end); });
}

}  // namespace genssl::GENSSL_ISA
