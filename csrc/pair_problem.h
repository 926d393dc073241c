// What the operations over pairs of rows share: block sizes, packed inputs, rounds of tasks.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <numeric>
#include <vector>

#include "csrc/common.h"
#include "csrc/memory.h"
#include "csrc/pair_queue.h"
#include "csrc/parallel.h"
#include "kernels/common/panels.h"
#include "kernels/contrast/pairs.h"

namespace genssl {

// Scores of a block: 256 x 256 where both sides are long.
constexpr int64_t kLongBlock = 256;
constexpr int64_t kBlockScores = kLongBlock * kLongBlock;
constexpr int64_t kWidestPanel = 32;
// Multiplications and additions that are worth a thread.
constexpr int64_t kWorthAThread = 1 << 20;

inline int64_t round_down(int64_t count, int64_t step) { return count / step * step; }

// 16 blocks, or more of the longest: rounds then keep as many threads busy.
inline int64_t block_size(int64_t count) {
  return std::clamp(ceil_div(count, 16 * kWidestPanel) * kWidestPanel, kWidestPanel, kLongBlock);
}

// Short blocks of rows meet long blocks of columns, as long as there are as many of both.
inline PairShape pair_shape(int64_t rows, int64_t columns, int64_t depth, bool gram) {
  PairShape shape{rows, columns, depth, block_size(rows), block_size(columns), gram};
  if (gram) return shape;
  const int64_t blocks = ceil_div(rows, shape.row_block);
  const int64_t longest = round_down(columns / std::max<int64_t>(blocks, 1), kWidestPanel);
  const int64_t wanted = kBlockScores / shape.row_block;
  shape.column_block = std::max(shape.column_block, std::min(wanted, longest));
  return shape;
}

inline double number_of(const Tensor& scalar) {
  const Tensor value = contiguous_to(scalar, ScalarType::Double);
  STD_TORCH_CHECK(value.numel() == 1, "scale, bias: expected one number, got the shape ",
                  shape_of(scalar));
  return *static_cast<const double*>(value.const_data_ptr());
}

inline void fill(Tensor& tensor, double value) {
  const int64_t count = tensor.numel();
  const bool is_double = tensor.scalar_type() == ScalarType::Double;
  void* data = tensor.mutable_data_ptr();
  parallel_for(0, count, 1 << 18, [&](int64_t begin, int64_t end) {
    if (is_double) {
      std::fill(static_cast<double*>(data) + begin, static_cast<double*>(data) + end, value);
    } else {
      std::fill(static_cast<float*>(data) + begin, static_cast<float*>(data) + end,
                static_cast<float>(value));
    }
  });
}

// Tensors of one call, kept alive beside the pointers to them. 16-bit input is widened.
class PairProblem {
 public:
  struct Options {
    OptionalTensor row_bias, column_bias, row_ids, column_ids;
  };

  PairProblem(const Tensor& x, const Tensor& y, const Tensor& scale, const Options& options,
              bool gram)
      : type_(compute_type(x)), scale_(number_of(scale)) {
    STD_TORCH_CHECK(x.dim() == 2 && y.dim() == 2 && x.size(1) == y.size(1),
                    "x, y: expected the shapes [N, D] and [M, D], got ", shape_of(x), " and ",
                    shape_of(y));
    x_ = contiguous_to(x, type_);
    y_ = gram ? x_ : contiguous_to(y, type_);
    args_.is_double = type_ == ScalarType::Double;
    args_.shape = pair_shape(x.size(0), y.size(0), x.size(1), gram);
    args_.row_bias = keep(options.row_bias, "row_bias", x.size(0), type_);
    args_.column_bias = keep(options.column_bias, "column_bias", y.size(0), type_);
    const ScalarType ids = args_.is_double ? ScalarType::Long : ScalarType::Int;
    args_.row_ids = keep(options.row_ids, "row_ids", x.size(0), ids);
    args_.column_ids = keep(options.column_ids, "column_ids", y.size(0), ids);
  }

  // What scores need, and gradients of x and of y.
  void pack(bool for_scores, bool for_x, bool for_y) {
    const int64_t width = GENSSL_DISPATCH(panel_columns)(args_.is_double);
    const int64_t columns = shape().columns, rows = shape().rows, depth = shape().depth;
    const auto panels_of = [&](int64_t count) { return ceil_div(count, width) * width; };
    PackPairsArgs of_x = pack_args(x_), of_y = pack_args(y_);
    args_.x = x_.const_data_ptr();
    args_.x_stride = depth;
    if (for_scores && conflicts(depth)) {
      of_x.padded_stride = args_.x_stride = depth + line();
      args_.x = of_x.padded = scratch({rows, args_.x_stride});
    }
    if (for_scores) args_.y_panels = of_y.panels = scratch({panels_of(columns), depth});
    if (for_x) args_.y_rows = of_y.row_panels = scratch({panels_of(depth), columns});
    if (for_y && !shape().gram) {
      args_.x_rows = of_x.row_panels = scratch({panels_of(depth), rows});
    }
    if (of_y.panels || of_y.row_panels) run_pack(of_y, width);
    if (of_x.padded || of_x.row_panels) run_pack(of_x, width);
    if (shape().gram) args_.x_rows = args_.y_rows;
  }

  // Calls kernel(scratch, pair) for the pairs of blocks of all rounds.
  template <class Kernel>
  void run(const Kernel& kernel) const {
    const int64_t size = GENSSL_DISPATCH(pair_scratch_size)(shape());
    const double work = 1.0 * shape().rows * shape().columns * shape().depth;
    const int64_t worth = static_cast<int64_t>(std::min(work / kWorthAThread, 1e6));
    PairQueue queue(shape());
    const auto serve = [&](int64_t, int64_t) {
      void* memory = args_.is_double ? static_cast<void*>(thread_scratch<double>(size))
                                     : static_cast<void*>(thread_scratch<float>(size));
      for (PairQueue::Task task; queue.take(task); queue.finish(task)) {
        kernel(memory, task.pair);
      }
    };
    parallel_for(0, std::clamp<int64_t>(worth, 1, num_threads()), 1, serve);
  }

  // A vector of numbers, all the same.
  Tensor vector(int64_t count, double value) const {
    if (count == 0) return nothing();
    Tensor result = new_empty(x_, {count}, type_);
    fill(result, value);
    return result;
  }

  // Where the scores of all pairs are to be kept (of gram the upper half), or one 0.
  Tensor scores(bool keep) const {
    return keep ? new_empty(x_, {shape().rows, shape().columns}, type_) : vector(1, 0.0);
  }
  static bool are_kept(const Tensor& scores) { return scores.dim() == 2; }

  const void* kept(Tensor& scores) const {
    if (!are_kept(scores)) return nullptr;
    check_shape(scores, "scores", {shape().rows, shape().columns});
    scores = contiguous_to(scores, type_);
    return scores.const_data_ptr();
  }

  // Zeros for the gradient of x or y.
  Tensor gradient_sums(int64_t rows) const {
    Tensor sums = new_empty(x_, {rows, gradient_stride()}, type_);
    fill(sums, 0.0);
    return sums;
  }
  int64_t gradient_stride() const {
    const int64_t width = GENSSL_DISPATCH(panel_columns)(args_.is_double);
    const int64_t depth = ceil_div(shape().depth, width) * width;
    return conflicts(depth) ? depth + line() : depth;
  }

  // scale * sums [rows, D] if it is wanted, and the sum of <sums, x> over all rows.
  std::pair<Tensor, double> finish(Tensor sums, bool of_x, bool wanted) const {
    const Tensor& source = of_x ? x_ : y_;
    const int64_t rows = source.size(0), depth = shape().depth;
    Tensor target = !wanted                 ? nothing()
                    : sums.size(1) == depth ? sums
                                            : new_empty(x_, {rows, depth}, type_);
    std::vector<double> products(rows);
    const FinishPairsArgs args{args_.is_double,
                               sums.const_data_ptr(),
                               sums.size(1),
                               source.const_data_ptr(),
                               depth,
                               scale_,
                               wanted ? target.mutable_data_ptr() : nullptr,
                               products.data()};
    parallel_for(
        0, rows, ceil_div(1 << 15, std::max<int64_t>(depth, 1)),
        [&](int64_t begin, int64_t end) { GENSSL_DISPATCH(finish_pairs)(args, begin, end); });
    double total = 0;
    for (double product : products) total += product;
    return {target, total};
  }

  Tensor scalar(double value) const {
    Tensor result = new_empty(x_, {}, type_);
    fill(result, value);
    return result;
  }

  // Of memory of its own: PyTorch takes outputs without any for aliases of each other.
  Tensor nothing() const {
    Tensor one = new_empty(x_, {1}, type_);
    return torch::stable::narrow(one, 0, 0, 0);
  }

  // Contiguous, of the problem's type; -infinity becomes 0 if `finite`.
  Tensor numbers(const Tensor& tensor, const char* name, int64_t count, bool finite) const {
    check_shape(tensor, name, {count});
    Tensor result = contiguous_to(tensor, type_);
    if (!finite) return result;
    Tensor copy = vector(count, 0.0);
    const auto replace = [&](auto zero) {
      using T = decltype(zero);
      const T* source = static_cast<const T*>(result.const_data_ptr());
      std::replace_copy(source, source + count, static_cast<T*>(copy.mutable_data_ptr()),
                        -std::numeric_limits<T>::infinity(), zero);
    };
    args_.is_double ? replace(0.0) : replace(0.0f);
    return copy;
  }

  const PairArgs& args() const { return args_; }
  const PairShape& shape() const { return args_.shape; }
  ScalarType type() const { return type_; }

 private:
  // Rows whose distance is a multiple of 2 KiB share few sets of the first level cache.
  bool conflicts(int64_t depth) const { return depth * number_size() % 2048 == 0; }
  int64_t number_size() const { return args_.is_double ? 8 : 4; }
  int64_t line() const { return 64 / number_size(); }

  PackPairsArgs pack_args(const Tensor& source) const {
    PackPairsArgs args{};
    args.is_double = args_.is_double;
    args.source = source.const_data_ptr();
    args.rows = source.size(0);
    args.depth = shape().depth;
    args.scale = scale_;
    return args;
  }

  void run_pack(const PackPairsArgs& args, int64_t width) const {
    const int64_t grain = ceil_div(1 << 15, std::max<int64_t>(width * args.depth, 1));
    parallel_for(0, ceil_div(args.rows, width), grain, [&](int64_t begin, int64_t end) {
      GENSSL_DISPATCH(pack_pairs)(args, begin, end);
    });
  }

  void* scratch(std::initializer_list<int64_t> shape) {
    kept_.push_back(new_empty(x_, std::vector<int64_t>(shape), type_));
    return kept_.back().mutable_data_ptr();
  }

  const void* keep(const OptionalTensor& tensor, const char* name, int64_t count, ScalarType type) {
    if (!tensor) return nullptr;
    check_shape(*tensor, name, {count});
    kept_.push_back(contiguous_to(*tensor, type));
    return kept_.back().const_data_ptr();
  }

  ScalarType type_;
  double scale_;
  Tensor x_, y_;
  std::vector<Tensor> kept_;
  PairArgs args_{};
};

// All pairs of rows of one matrix; without ids each row is left out of its own sum.
inline PairProblem gram_problem(const Tensor& z, const Tensor& scale, const OptionalTensor& bias,
                                OptionalTensor ids) {
  if (!ids) {
    ids = new_empty(z, {num_samples(z)}, ScalarType::Int);
    int32_t* numbers = static_cast<int32_t*>(ids->mutable_data_ptr());
    std::iota(numbers, numbers + ids->numel(), 0);
  }
  return PairProblem(z, z, scale, {bias, bias, ids, ids}, true);
}

inline void* data_of(Tensor& tensor, bool wanted) {
  return wanted ? tensor.mutable_data_ptr() : nullptr;
}

// Back to the type of a 16-bit input.
inline Tensor as_type_of(const Tensor& tensor, const Tensor& input) {
  return tensor.scalar_type() == input.scalar_type()
             ? tensor
             : torch::stable::to(tensor, input.scalar_type());
}

}  // namespace genssl
