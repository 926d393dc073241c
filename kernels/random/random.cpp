#include "kernels/random/random.h"

#include "kernels/common/element.h"
#include "kernels/common/philox_vec.h"

namespace genssl::GENSSL_ISA {
namespace {

constexpr int64_t kChunk = 1024;

template <class Map>
void fill_floats_of(const RandomArgs& args, int64_t begin, int64_t end, float* target) {
  fill<Map>(args.seed, args.step, args.first_sample, args.elements_per_sample, begin, end, target);
}

void fill_floats(const RandomArgs& args, int64_t begin, int64_t end, float* target) {
  switch (args.distribution) {
    case Distribution::uniform:
      return fill_floats_of<Uniform>(args, begin, end, target);
    case Distribution::normal:
      return fill_floats_of<Normal>(args, begin, end, target);
    case Distribution::rademacher:
      return fill_floats_of<Rademacher>(args, begin, end, target);
  }
}

// Through a buffer that stays in the first-level cache.
template <class Element>
void fill_converted(const RandomArgs& args, int64_t begin, int64_t end) {
  float buffer[kChunk];
  for (; begin < end; begin += kChunk) {
    const int64_t count = end - begin < kChunk ? end - begin : kChunk;
    Element* target = static_cast<Element*>(args.target) + begin;
    fill_floats(args, begin, begin + count, buffer);
    for_each_register<Element>(0, count, [&](auto lanes) GENSSL_INLINE_LAMBDA {
      Lanes<Element> numbers;
      load_floats(buffer + lanes.index, numbers);
      lanes.write(target, numbers);
    });
  }
}

}  // namespace

void random(const RandomArgs& args, int64_t begin, int64_t end) {
  switch (args.type) {
    case ElementType::float32:
      return fill_floats(args, begin, end, static_cast<float*>(args.target) + begin);
    case ElementType::float64:
      return fill_converted<double>(args, begin, end);
    case ElementType::bfloat16:
      return fill_converted<BFloat16>(args, begin, end);
    case ElementType::float16:
      return fill_converted<Float16>(args, begin, end);
  }
}

}  // namespace genssl::GENSSL_ISA
