#include "kernels/score/time_embedding.h"

#include "kernels/common/element.h"
#include "kernels/common/math.h"

namespace genssl::GENSSL_ISA {
namespace {

template <class Element>
void embed(const TimeEmbeddingArgs& args, int64_t row) {
  using Numbers = Lanes<Element>;
  using Number = typename ComputeType<Element>::type;
  const int64_t half = args.dim / 2;
  const Numbers time(load(static_cast<const Element*>(args.times) + row, 1)[0]);
  const Number* frequencies = static_cast<const Number*>(args.frequencies);
  Element* target = static_cast<Element*>(args.target) + row * args.dim;
  Element* sines = args.sin_first ? target : target + half;
  Element* cosines = args.sin_first ? target + half : target;
  for (int64_t i = 0; i < half; i += Numbers::size) {
    const int count = static_cast<int>(half - i < Numbers::size ? half - i : Numbers::size);
    const auto angle = sincos(time * Numbers::load(frequencies + i, count));
    store(angle.sine, sines + i, count);
    store(angle.cosine, cosines + i, count);
  }
  if (args.dim % 2) target[args.dim - 1] = Element{};
}

template <class Element>
void embed_rows(const TimeEmbeddingArgs& args, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) embed<Element>(args, row);
}

}  // namespace

void time_embedding(const TimeEmbeddingArgs& args, int64_t begin, int64_t end) {
  with_element(args.type, [&]<class Element>() { embed_rows<Element>(args, begin, end); });
}

}  // namespace genssl::GENSSL_ISA
