// Measured limits of the machine, for the benchmarks: memory streams and the matrix micro-kernel.
#pragma once

#include <stdint.h>

#include "kernels/common/isa.h"

namespace genssl {

constexpr int kMaxStreamReads = 4;
constexpr int kMaxStreamWrites = 2;

struct StreamArgs {
  const float* reads[kMaxStreamReads];
  float* writes[kMaxStreamWrites];
  int num_reads;   // 0 to kMaxStreamReads
  int num_writes;  // 1 to kMaxStreamWrites
};

// Rows of a register tile and columns of a packed panel of the matrix micro-kernel.
struct TileShape {
  int64_t rows, columns;
};

struct TilesArgs {
  const float* activations;  // [num_tiles * rows, depth]
  const float* panels;       // [num_panels, depth, columns]
  int64_t num_tiles, num_panels, depth;
};

}  // namespace genssl

// Writes the sum of the read streams to every write stream, for the elements [begin, end).
GENSSL_DECLARE_KERNEL(void, stream, (const StreamArgs&, int64_t begin, int64_t end))

GENSSL_DECLARE_KERNEL(TileShape, tile_shape, ())

// Multiplies all tiles with all panels, once for every item in [begin, end).
GENSSL_DECLARE_KERNEL(void, multiply_tiles, (const TilesArgs&, int64_t begin, int64_t end))
