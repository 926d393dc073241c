#include "kernels/contrast/ema_update.h"

#include "kernels/contrast/row_reductions.h"

namespace genssl::GENSSL_ISA {
namespace {

template <class Element>
void update(const EmaUpdateArgs& args, int64_t begin, int64_t end) {
  for_each_register<Element>(begin, end, [&](auto lanes) GENSSL_INLINE_LAMBDA {
    const auto numbers = in_numbers(lanes);
    const Vec<float> average = numbers.read(args.averages);
    const Vec<float> step = lanes.read(args.parameters) - average;
    numbers.write(args.averages, fma(Vec<float>(args.weight), step, average));
  });
}

}  // namespace

void ema_update(const EmaUpdateArgs& args, int64_t begin, int64_t end) {
  if (args.type == ElementType::bfloat16) return update<BFloat16>(args, begin, end);
  update<Float16>(args, begin, end);
}

}  // namespace genssl::GENSSL_ISA
