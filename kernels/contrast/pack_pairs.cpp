#include "kernels/contrast/pair_block.h"

namespace genssl::GENSSL_ISA {
namespace {

template <class T>
void pack_scaled(const PackPairsArgs& args, int64_t panel) {
  const Matrix<T> matrix{typed<T>(args.source), nullptr, args.rows, args.depth};
  T* target = typed<T>(args.panels) + panel * kPanelColumns<T> * args.depth;
  pack_panel(matrix, panel, target);
  const Vec<T> scale(static_cast<T>(args.scale));
  for (int64_t i = 0; i < kPanelColumns<T> * args.depth; i += Vec<T>::size) {
    (Vec<T>::load(target + i) * scale).store(target + i);
  }
}

template <class T>
void run(const PackPairsArgs& args, int64_t begin, int64_t end) {
  const T* source = typed<T>(args.source);
  for (int64_t panel = begin; panel < end; ++panel) {
    const int64_t row = panel * kPanelColumns<T>;
    const int64_t row_end = smaller(row + kPanelColumns<T>, args.rows);
    if (args.panels) pack_scaled<T>(args, panel);
    if (args.row_panels) {
      pack_rows(source + row * args.depth, args.depth, row_end - row, args.depth,
                typed<T>(args.row_panels), row, args.rows);
    }
    for (int64_t r = row; args.padded && r < row_end; ++r) {
      copy_lanes(source + r * args.depth, args.depth,
                 typed<T>(args.padded) + r * args.padded_stride);
    }
  }
}

template <class T>
void finish(const FinishPairsArgs& args, int64_t begin, int64_t end) {
  const Vec<T> scale(static_cast<T>(args.scale));
  for (int64_t r = begin; r < end; ++r) {
    const T *sums = typed<T>(args.sums) + r * args.stride, *x = typed<T>(args.x) + r * args.depth;
    T* target = typed<T>(args.target) + r * args.depth;
    Vec<T> product(T(0));
    for (int64_t k = 0; k < args.depth; k += Vec<T>::size) {
      const int64_t lanes = args.depth - k;
      const Vec<T> sum = load_lanes(sums + k, lanes);
      product = fma(sum, load_lanes(x + k, lanes), product);
      if (args.target) store_lanes(sum * scale, target + k, lanes);
    }
    args.products[r] = sum_in_order(product);
  }
}

}  // namespace

int64_t pair_scratch_size(const PairShape& shape) {
  // Beside the block, a register and three numbers for every row and three for every column.
  const int64_t of_row = block_stride<float>(shape) + Vec<float>::size + 3;
  return shape.row_block * of_row + 3 * shape.column_block;
}

void pack_pairs(const PackPairsArgs& args, int64_t begin, int64_t end) {
  args.is_double ? run<double>(args, begin, end) : run<float>(args, begin, end);
}

void finish_pairs(const FinishPairsArgs& args, int64_t begin, int64_t end) {
  args.is_double ? finish<double>(args, begin, end) : finish<float>(args, begin, end);
}

}  // namespace genssl::GENSSL_ISA
