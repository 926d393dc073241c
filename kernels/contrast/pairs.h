// Reductions over all pairs of rows of x[N, D] and y[M, D], without the N x M matrix of their
// products, and the gradients of these reductions.
//
//     s_ij = scale <x_i, y_j> + row_bias_i + column_bias_j;  pairs with equal ids are left out
//
//   logsumexp   log sum_j e^s_ij for rows, log sum_i e^s_ij for columns
//               gradient of s: W_ij = g_i e^(s_ij - rows_i) + h_j e^(s_ij - columns_j)
//   pair_sum    sum_{j != i} psi(shift_i + s_ij), of one matrix with itself
//   sigmoid     sum_ij log(1 + e^(-+s_ij)), its gradients in the same pass: W = +-sigmoid(+-s)
// and from W: to_x = scale W y, to_y = scale W^T x.
//
// Tiling. x and y are cut into blocks of rows; a task takes one block of each, [256, D] and [256,
// D] where both are large. It computes the block of scores by the packed micro-kernel (y by
// columns, already scaled), applies exponentials, sums and weights to the registers of a tile
// before they are stored, and multiplies the block of weights, 278 KB in the second level cache,
// with y and, transposed, with x. Of one matrix with itself (gram) only blocks on and above the
// diagonal are computed, and each serves its rows and its columns. Against blocks of 192 the
// products ran 4 to 6 % faster: what a task reads and adds to is used more often.
//
// Schedule. Tasks of a round share no block of x and none of y: a round of a latin square, or for
// gram of a tournament, in which every block meets every other once. What is added to a block's
// sums and gradients is added in the order of the rounds, whatever the number of threads, without
// atomics or copies; csrc/pair_queue.h sees to it without barriers.
//
// Operations (with N = M): rows and columns of logsumexp 2 N^2 D forward, 6 backward (one product
// for the scores again, two for the gradients; 4 with the scores of the forward pass); gram 1 and 3
// (2); sigmoid 2 without gradients and 6 with.
#pragma once

#include <stdint.h>

#include "kernels/common/isa.h"

namespace genssl {

struct PairShape {
  int64_t rows, columns, depth;     // N, M, D
  int64_t row_block, column_block;  // multiples of the widest panel
  bool gram;                        // y is x
};

// One task: a block of rows of x and one of y.
struct BlockPair {
  int64_t row, column;
};

static inline int64_t pair_blocks(int64_t count, int64_t block) {
  return (count + block - 1) / block;
}

// Of gram, round 0 holds the blocks on the diagonal. An odd number of blocks plays with a dummy.
static inline int64_t pair_rounds(const PairShape& shape) {
  const int64_t rows = pair_blocks(shape.rows, shape.row_block);
  if (shape.gram) return rows + (rows & 1);
  const int64_t columns = pair_blocks(shape.columns, shape.column_block);
  return rows > columns ? rows : columns;
}

static inline int64_t pair_tasks(const PairShape& shape, int64_t round) {
  const int64_t rows = pair_blocks(shape.rows, shape.row_block);
  if (shape.gram) return round == 0 ? rows : (rows + 1) / 2;
  const int64_t columns = pair_blocks(shape.columns, shape.column_block);
  return rows < columns ? rows : columns;
}

// Returns false for a game against the dummy.
static inline bool pair_of_task(const PairShape& shape, int64_t round, int64_t task,
                                BlockPair& pair) {
  const int64_t rows = pair_blocks(shape.rows, shape.row_block);
  if (!shape.gram) {
    const int64_t columns = pair_blocks(shape.columns, shape.column_block);
    pair = rows < columns ? BlockPair{task, (task + round) % columns}
                          : BlockPair{(task + round) % rows, task};
    return true;
  }
  if (round == 0) {
    pair = {task, task};
    return true;
  }
  // The last of an even number of players stays, the others move on around the table.
  const int64_t others = rows + (rows & 1) - 1, seat = round - 1;
  const int64_t first = (seat + task) % others;
  const int64_t second = task == 0 ? others : (seat + others - task) % others;
  pair = first < second ? BlockPair{first, second} : BlockPair{second, first};
  return pair.column < rows;
}

// Numbers are fp64 where is_double, else fp32; ids are integers as wide as numbers. Null: absent.
struct PairArgs {
  bool is_double;
  PairShape shape;
  const void* x;         // [rows, depth]
  int64_t x_stride;      // numbers between rows of x
  const void* y_panels;  // scale * y by columns, as pack_panel has it
  const void* x_rows;    // as pack_rows has it; only for gradients
  const void* y_rows;
  const void* row_bias;
  const void* column_bias;
  const void* row_ids;
  const void* column_ids;
};

struct LogSumExpArgs {
  PairArgs pairs;
  void* row_max;     // [rows], -infinity at first
  double* row_sum;   // [rows], 0 at first: of e^(s - max)
  void* column_max;  // [columns]; those of rows for gram, null where columns are not wanted
  double* column_sum;
  void* scores;  // [rows, columns], where pairs left out are -infinity; null: not wanted
};

// Of every s. Gradients and their targets of columns are those of rows for gram.
struct PairGradientArgs {
  PairArgs pairs;
  void* to_x;  // [rows, stride], not yet times scale, 0 at first; null: not wanted
  void* to_y;
  int64_t stride;     // whole panels of depth, or more
  void* row_weights;  // sum_j W_ij [rows], 0 at first; null: not wanted
  void* column_weights;
};

struct LogSumExpBackwardArgs {
  PairGradientArgs gradient;
  const void* grad_rows;     // [rows]
  const void* rows;          // log sums [rows], finite
  const void* grad_columns;  // null without sums over columns
  const void* columns;
  const void* scores;  // what the forward pass kept, or null
};

enum class Psi { softplus, hinge, sigmoid, quadratic };

struct PairSumArgs {
  PairArgs pairs;
  Psi psi;
  const void* shift;  // [rows]
  void* sums;         // [rows], 0 at first
};

struct PairSumBackwardArgs {
  PairGradientArgs gradient;
  Psi psi;
  const void* shift;
  const void* grad;  // [rows]
  void* to_shift;    // [rows], 0 at first
};

struct SigmoidPairsArgs {
  PairGradientArgs gradient;  // without row and column weights
  double bias;
  double* loss;     // [blocks of rows], 0 at first
  double* to_bias;  // likewise
};

struct PackPairsArgs {
  bool is_double;
  const void* source;  // [rows, depth]
  int64_t rows, depth;
  double scale;
  void* panels;      // scaled, by columns; null: not wanted
  void* row_panels;  // null: not wanted
  void* padded;      // [rows, stride]; null: not wanted
  int64_t padded_stride;
};

struct FinishPairsArgs {
  bool is_double;
  const void* sums;  // [rows, stride]
  int64_t stride;
  const void* x;  // [rows, depth]
  int64_t depth;
  double scale;
  void* target;      // scale * sums [rows, depth]; null: not wanted
  double* products;  // <sums, x> [rows]
};

}  // namespace genssl

// Numbers of scratch memory that a task needs.
GENSSL_DECLARE_KERNEL(int64_t, pair_scratch_size, (const PairShape& shape))
// Panels [begin, end) of panel_columns rows of the source each.
GENSSL_DECLARE_KERNEL(void, pack_pairs, (const PackPairsArgs& args, int64_t begin, int64_t end))
GENSSL_DECLARE_KERNEL(void, logsumexp_pairs,
                      (const LogSumExpArgs& args, void* scratch, BlockPair pair))
GENSSL_DECLARE_KERNEL(void, logsumexp_pairs_backward,
                      (const LogSumExpBackwardArgs& args, void* scratch, BlockPair pair))
GENSSL_DECLARE_KERNEL(void, pair_sum, (const PairSumArgs& args, void* scratch, BlockPair pair))
GENSSL_DECLARE_KERNEL(void, pair_sum_backward,
                      (const PairSumBackwardArgs& args, void* scratch, BlockPair pair))
GENSSL_DECLARE_KERNEL(void, sigmoid_pairs,
                      (const SigmoidPairsArgs& args, void* scratch, BlockPair pair))
// Rows [begin, end).
GENSSL_DECLARE_KERNEL(void, finish_pairs, (const FinishPairsArgs& args, int64_t begin, int64_t end))
