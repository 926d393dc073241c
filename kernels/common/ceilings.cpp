// Stream: write_j[i] = Σ_k read_k[i]. The counts of streams are template arguments, so that the
// loop holds nothing but loads, R - 1 additions and stores: it runs at the speed of the memory it
// touches.
//
// Tiles: the matrix micro-kernel on operands that stay in the first and second level caches,
// without any packing or epilogue: the rate that no operation built on it can pass.
#include "kernels/common/ceilings.h"

#include "kernels/common/matmul.h"
#include "kernels/common/vec.h"

namespace genssl::GENSSL_ISA {
namespace {

template <int R, int W>
void stream_range(const StreamArgs& args, int64_t begin, int64_t end) {
  using F = Vec<float>;
  const int64_t vector_end = begin + (end - begin) / F::size * F::size;
  for (int64_t i = begin; i < vector_end; i += F::size) {
    F sum(0.0f);
    for (int k = 0; k < R; ++k) sum = sum + F::load(args.reads[k] + i);
    for (int j = 0; j < W; ++j) sum.store(args.writes[j] + i);
  }
  const int tail = static_cast<int>(end - vector_end);
  F sum(0.0f);
  for (int k = 0; k < R; ++k) sum = sum + F::load(args.reads[k] + vector_end, tail);
  for (int j = 0; j < W; ++j) sum.store(args.writes[j] + vector_end, tail);
}

template <int W>
void stream_writes(const StreamArgs& args, int64_t begin, int64_t end) {
  switch (args.num_reads) {
    case 0:
      return stream_range<0, W>(args, begin, end);
    case 1:
      return stream_range<1, W>(args, begin, end);
    case 2:
      return stream_range<2, W>(args, begin, end);
    case 3:
      return stream_range<3, W>(args, begin, end);
    default:
      return stream_range<4, W>(args, begin, end);
  }
}

}  // namespace

void stream(const StreamArgs& args, int64_t begin, int64_t end) {
  args.num_writes == 1 ? stream_writes<1>(args, begin, end) : stream_writes<2>(args, begin, end);
}

TileShape tile_shape() { return {kTileRows, kPanelColumns<float>}; }

void multiply_tiles(const TilesArgs& args, int64_t begin, int64_t end) {
  constexpr int64_t columns = kPanelColumns<float>;
  float product[kTileRows * columns];
  for (int64_t item = begin; item < end; ++item) {
    for (int64_t panel = 0; panel < args.num_panels; ++panel) {
      const float* weights = args.panels + panel * args.depth * columns;
      for (int64_t tile = 0; tile < args.num_tiles; ++tile) {
        const float* rows = args.activations + tile * kTileRows * args.depth;
        multiply_tile<float, kTileRows, 1, kPanelVecs>(rows, args.depth, weights, args.depth,
                                                       product);
        asm volatile(""
                     :
                     : "r"(product)
                     : "memory");  // nobody reads it: keep the compiler from noticing
      }
    }
  }
}

}  // namespace genssl::GENSSL_ISA
